"""A session for blocking callers: each vCPU is a thread, each trapped instruction one call on its port.

    with open_session("unix:/run/fpstated.sock", vcpus=["vms/a/vcpus/0"]) as session:
        port = session.vcpu("vms/a/vcpus/0")
        outcome = port.wrmsr(MSR_IA32_XFD, value=0)     # blocks until the outcome is final

A background thread renews the lease. When the lease has ended nonetheless (the connection was cut for too long), the
next call opens a new session over the same vCPUs: the numbers belong to the vCPUs, so nothing happens twice.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import grpc
from fpstate.v1 import session_pb2 as pb
from fpstate.v1.session_pb2_grpc import GuestSessionServiceStub

from fpstated.link.trace import trace_metadata
from guest_agent.channel import connect
from guest_agent.error import HostError, host_error
from guest_agent.moving import HOPS_MAX, goes_with_its_vm
from guest_agent.opening import Opened, RunMode, SessionKey, SessionSpec, opened_from_proto
from guest_agent.port import VcpuPort
from guest_agent.recovery import Remedy, remedy
from guest_agent.wait import SessionLost

CALL_TIMEOUT_S = 10.0
RECONNECT_S = 60.0


def open_session(
    host: str | grpc.Channel,
    *,
    vcpus: Sequence[str],
    client_name: str = "",
    run_mode: RunMode = RunMode.IMPLICIT,
    lease_s: float | None = None,
    required_capabilities: Sequence[str] = (),
    reconnect_s: float = RECONNECT_S,
    connect_to: Callable[[str], grpc.Channel] = connect,
) -> Session:
    """Open a session over vCPUs that exist, at an address (`unix:PATH`, `HOST:PORT`) or on a channel of the caller's.

    `lease_s` is a wish in seconds, the host decides. `reconnect_s` is how long a call goes on trying to reach a host
    that has gone away, in seconds. `connect_to` makes a channel to where the session's VM has moved.

    Raises:
        HostError: the host refused (`VCPU_NOT_FOUND`, `CAPABILITY_MISSING` ...) or was not reached.
        ValueError: the address is none.
    """
    spec = SessionSpec(
        vcpus=tuple(vcpus),
        client_name=client_name,
        run_mode=run_mode,
        lease_s=lease_s,
        required_capabilities=tuple(required_capabilities),
    )
    if isinstance(host, str):
        return Session(connect_to(host), spec, owns_channel=True, reconnect_s=reconnect_s, connect_to=connect_to)
    return Session(host, spec, owns_channel=False, reconnect_s=reconnect_s, connect_to=connect_to)


class Session:
    """An open session; made by `open_session`, ended by `close` or the end of its `with` block.

    Its ports may be used from any threads, one at a time each (`init` and `interrupt` apart, which come from others).
    """

    def __init__(
        self,
        channel: grpc.Channel,
        spec: SessionSpec,
        *,
        owns_channel: bool,
        reconnect_s: float,
        connect_to: Callable[[str], grpc.Channel] = connect,
    ) -> None:
        self._channel = channel
        self._owns_channel = owns_channel
        self._spec = spec
        self._connect_to = connect_to
        #: How often the session has moved with its VM: ids of directives are each host's own.
        self.moves = 0
        self.stub = GuestSessionServiceStub(channel)
        self._reopening = threading.Lock()
        self._closed = threading.Event()
        try:
            self._opened = self._open(self.stub)
        except BaseException:
            self._drop_channel()
            raise
        self._ports = {each.vcpu: VcpuPort(self, each, reconnect_s=reconnect_s) for each in self._opened.vcpus}
        self._keeper = threading.Thread(target=self._keep_alive, name="fpstated-keepalive", daemon=True)
        self._keeper.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def key(self) -> SessionKey:
        """Name and epoch; another one after the session was opened again."""
        return self._opened.key

    @property
    def lease_s(self) -> float:
        """Length of the lease as granted, in seconds."""
        return self._opened.lease_s

    @property
    def vcpus(self) -> tuple[str, ...]:
        """The vCPUs of the session: `vms/{vm}/vcpus/{index}`."""
        return self._spec.vcpus

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def vcpu(self, name: str) -> VcpuPort:
        """Return the port of a vCPU of this session.

        Raises:
            KeyError: the session was not opened with this vCPU.
        """
        return self._ports[name]

    def close(self) -> None:
        """End the session: waits on its ports end with `Interrupted`, its vCPUs leave the guest. Twice is fine.

        What the host says to it is not asked: a session that is not closed ends with its lease.
        """
        with self._reopening:
            if self._closed.is_set():
                return
            self._closed.set()
        for port in self._ports.values():
            port.interrupt()
        request = pb.CloseSessionRequest(session=self.key.name, epoch=self.key.epoch, request_id=str(uuid.uuid4()))
        try:
            self.stub.CloseSession(request, timeout=min(CALL_TIMEOUT_S, 2.0), metadata=trace_metadata())
        except (grpc.RpcError, ValueError):  # the host is away, or the channel's owner has closed it
            pass
        finally:
            self._keeper.join(timeout=CALL_TIMEOUT_S)
            self._drop_channel()

    def reopen(self, key: SessionKey) -> None:
        """Open a new session in place of the one of `key`; nothing to do if another thread has done so.

        Raises:
            HostError: the host refused, or was not reached.
            SessionLost: the session was closed here, or the host is elsewhere in a vCPU's events.
        """
        with self._reopening:
            if self._closed.is_set():
                raise SessionLost(f"session {key.name} was closed by its owner")
            if self.key != key:
                return
            self._opened = self._open_again(self.stub)

    def reopened(self, key: SessionKey) -> bool:
        """Whether the session of `key` was opened again; waits where that is under way."""
        with self._reopening:
            return self.key != key

    @property
    def movable(self) -> bool:
        """Whether the session goes with its VM to another host."""
        return goes_with_its_vm(self.vcpus)

    def move(self, key: SessionKey, target: str) -> None:
        """Open a new session where the VM has moved, in place of the one of `key`; the connection goes there too.

        Raises: as `reopen`.
        """
        with self._reopening:
            if self._closed.is_set():
                raise SessionLost(f"session {key.name} was closed by its owner")
            if self.key != key:
                return
            channel, opened = self._open_there(target)
            former, owned = self._channel, self._owns_channel
            self._channel, self._owns_channel = channel, True
            self.stub = GuestSessionServiceStub(channel)
            self.moves += 1
            self._opened = opened
            if owned:
                former.close()  # last, so that whoever finds it closed finds another key too

    def _open_there(self, target: str) -> tuple[grpc.Channel, Opened]:
        """Follow the VM, which may have moved on meanwhile."""
        for _hop in range(HOPS_MAX):
            channel = self._connect_to(target)
            try:
                return channel, self._open_again(GuestSessionServiceStub(channel))
            except HostError as error:
                channel.close()
                if remedy(error.refusal) is not Remedy.MOVE:
                    raise
                target = error.metadata["target"]
            except BaseException:
                channel.close()
                raise
        raise SessionLost(f"the VM is never where it is said to be, at last at {target}")

    def _open_again(self, stub: GuestSessionServiceStub) -> Opened:
        """Open a session that goes on where every port is."""
        opened = self._open(stub)
        for each in opened.vcpus:
            self._ports[each.vcpu].check_resume(each)
        return opened

    def _open(self, stub: GuestSessionServiceStub) -> Opened:
        try:
            request = self._spec.to_proto()
            reply = stub.OpenSession(request, timeout=CALL_TIMEOUT_S, metadata=trace_metadata())
            return opened_from_proto(reply)
        except grpc.RpcError as error:
            raise host_error(error) from error

    def _keep_alive(self) -> None:
        """Renew the lease at a third of it, sooner after a failure, until the session is closed or taken away."""
        while not self._closed.wait(self.lease_s / 3):
            while not self._renewed():
                if self._closed.wait(min(1.0, self.lease_s / 10)):
                    return

    def _renewed(self) -> bool:
        """Renew once. True also where renewing makes no sense any more: the ports' own calls will say why."""
        key = self.key
        try:
            request = pb.KeepAliveRequest(session=key.name, epoch=key.epoch)
            self.stub.KeepAlive(request, timeout=CALL_TIMEOUT_S, metadata=trace_metadata())
        except grpc.RpcError as error:
            return self._recovered(host_error(error), key)
        except ValueError:  # the channel was closed under the call
            return True
        return True

    def _recovered(self, error: HostError, key: SessionKey) -> bool:
        match remedy(error.refusal):
            case Remedy.REOPEN:
                return self._reopened(lambda: self.reopen(key))
            case Remedy.MOVE:
                return self._reopened(lambda: self.move(key, error.metadata["target"]))
            case Remedy.AGAIN | Remedy.LATER:
                return False
            case Remedy.NONE:
                return True

    def _reopened(self, reopen: Callable[[], None]) -> bool:
        try:
            reopen()
        except HostError as refused:
            return remedy(refused.refusal) is Remedy.NONE
        except SessionLost:
            return True
        return True

    def _drop_channel(self) -> None:
        if self._owns_channel:
            self._channel.close()
