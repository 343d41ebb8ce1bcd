"""What goes on all the while: each storm is a round that is begun again as soon as it is over.

None of them tidies up behind itself: what it leaves, the host has to get rid of.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any, Final

import grpc
from fpstate.v1 import (
    event_pb2,
    exit_pb2,
    exit_pb2_grpc,
    host_pb2,
    host_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    vcpu_pb2,
    vcpu_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
)
from google.protobuf.duration_pb2 import Duration

from fault_lab.live.proxy import Proxy
from tests.live.host import CHANNEL_OPTIONS

#: A lease that is over soon, for sessions that are forgotten.
_SOON: Final = Duration(seconds=1)
_TIMEOUT_S: Final = 30.0
_XCR0_AMX: Final = 0x602E7
_numbers = itertools.count()


class Storms:
    """The rounds, on the host at ``address``; ``proxy`` is the way to it that can be cut."""

    def __init__(self, address: str, proxy: Proxy, rng: Random) -> None:
        self._address = address
        self._proxy = proxy
        self._rng = rng

    def rounds(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Every storm, by its name."""
        return {
            "connections": self.connections,
            "abandoned calls": self.abandoned_calls,
            "slow readers": self.slow_readers,
            "cut streams": self.cut_streams,
            "forgotten sessions": self.forgotten_sessions,
            "watchers": self.watchers,
            "exits": self.exits,
            "refusals": self.refusals,
        }

    def _channel(self, address: str = "") -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(address or self._address, options=CHANNEL_OPTIONS)

    async def connections(self) -> None:
        """Many connections at once, one call each, some of which do not wait for its answer."""

        async def one(nr: int) -> None:
            async with self._channel() as channel:
                call = host_pb2_grpc.HostServiceStub(channel).GetHostInfo(host_pb2.GetHostInfoRequest())
                if nr % 4:
                    await call

        await asyncio.gather(*(one(nr) for nr in range(16)))

    async def abandoned_calls(self) -> None:
        """Streams and calls that nobody reads, cancels or ends; their connection goes some time later."""
        async with self._channel() as channel:
            vcpu = await _vcpu(channel)
            session, sessions = await _session(channel, vcpu), session_pb2_grpc.GuestSessionServiceStub(channel)
            for _ in range(8):
                stream = sessions.Attach()
                await stream.write(_hello(session))
                exit_pb2_grpc.ExitServiceStub(channel).WatchExits(exit_pb2.WatchExitsRequest())
                sessions.Attach()  # without a hello
                del stream
            sessions.SubmitEvents(_submit(session, vcpu, 1, xsetbv=event_pb2.Xsetbv(value=_XCR0_AMX)))
            await asyncio.sleep(self._rng.random())
            await _delete(channel, vcpu)

    async def slow_readers(self) -> None:
        """Asks for megabytes of registers on a stream and reads none of them, until it has written all it can."""
        async with self._channel() as channel:
            vcpu = await _vcpu(channel)
            session = await _session(channel, vcpu)
            stream: Any = session_pb2_grpc.GuestSessionServiceStub(channel).Attach()
            await stream.write(_hello(session))
            read = event_pb2.RegisterRead(feature=2, offset=0, length=256)
            for first in range(1, 900, 100):
                events = [_event(vcpu, seq, register_read=read) for seq in range(first, first + 100)]
                batch = event_pb2.EventBatch(events=event_pb2.GuestEvents(events=events))
                with suppress(TimeoutError, asyncio.CancelledError, asyncio.InvalidStateError):
                    await asyncio.wait_for(stream.write(session_pb2.AttachRequest(batch=batch)), 0.2)
            await _delete(channel, vcpu)

    async def cut_streams(self) -> None:
        """An Attach stream and a watcher through the proxy, cut at any moment."""
        async with self._channel() as straight:
            vcpu = await _vcpu(straight)
            async with self._channel(self._proxy.address) as channel:
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    session = await _session(channel, vcpu)
                    stream: Any = session_pb2_grpc.GuestSessionServiceStub(channel).Attach()
                    watch: Any = exit_pb2_grpc.ExitServiceStub(channel).WatchExits(exit_pb2.WatchExitsRequest())
                    await watch.read()
                    await stream.write(_hello(session))
                    await asyncio.sleep(self._rng.random() / 20)
                    self._proxy.cut()
                    await stream.read()
            await _delete(straight, vcpu)

    async def forgotten_sessions(self) -> None:
        """Sessions that are opened and never spoken of again, over and over on the same vCPU, a stream on each."""
        async with self._channel() as channel:
            vcpu = await _vcpu(channel)
            for _ in range(8):
                session = await _session(channel, vcpu)
                await session_pb2_grpc.GuestSessionServiceStub(channel).Attach().write(_hello(session))
            await _delete(channel, vcpu)

    async def watchers(self) -> None:
        """Watchers that read a little, or nothing, and go."""
        async with self._channel() as channel:
            stub = exit_pb2_grpc.ExitServiceStub(channel)
            calls: list[Any] = [stub.WatchExits(exit_pb2.WatchExitsRequest()) for _ in range(16)]
            await calls[0].read()
            for call in calls[::2]:
                call.cancel()

    async def exits(self) -> None:
        """A vCPU without permission exits; who controls the VM decides; the guest gets #GP; all of it is deleted."""
        async with self._channel() as channel:
            vcpu = await _vcpu(channel)
            try:
                await _exit_and_decision(channel, vcpu)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ABORTED:  # on a busy machine a short lease may be over by now
                    raise
            finally:
                await _delete(channel, vcpu)

    async def refusals(self) -> None:
        """Calls that are refused: of no VM, with bytes that are no message, with a name too long."""
        async with self._channel() as channel:
            raw: Any = channel.unary_unary("/fpstate.v1.VmService/GetVm")
            for request in (b"", b"\xff\xff", b"\x0a\xf0\xa2\x04" + b"x" * 70_000):
                with suppress(grpc.aio.AioRpcError):
                    await raw(request, timeout=_TIMEOUT_S)


async def _exit_and_decision(channel: grpc.aio.Channel, vcpu: str) -> None:
    session, exits = await _session(channel, vcpu), exit_pb2_grpc.ExitServiceStub(channel)
    scope = vcpu.partition("/vcpus/")[0]
    acquire = exit_pb2.AcquireControlRequest(scope=scope, controller_name="soak", lease=_SOON)
    control = await exits.AcquireControl(acquire, timeout=_TIMEOUT_S)
    asked = _submit(session, vcpu, 1, xsetbv=event_pb2.Xsetbv(value=_XCR0_AMX))
    answer = await session_pb2_grpc.GuestSessionServiceStub(channel).SubmitEvents(asked, timeout=_TIMEOUT_S)
    pending = answer.outcomes.outcomes[0].pending
    decision = exit_pb2.ResolveExitRequest(
        name=pending.exit,
        generation=pending.generation,
        control=control.control,
        control_epoch=control.epoch,
        decision=exit_pb2.Decision(inject_gp=exit_pb2.InjectGp()),
        request_id=f"soak-{next(_numbers)}",
    )
    await exits.ResolveExit(decision, timeout=_TIMEOUT_S)


async def _vcpu(channel: grpc.aio.Channel) -> str:
    """A VM with one vCPU that nobody had before, made as a client makes it: with request ids."""
    name = f"soak-{next(_numbers)}"
    await vm_pb2_grpc.VmServiceStub(channel).CreateVm(
        vm_pb2.CreateVmRequest(vm_id=name, request_id=f"{name}/vm"), timeout=_TIMEOUT_S
    )
    request = vcpu_pb2.CreateVcpuRequest(parent=f"vms/{name}", index=0, request_id=f"{name}/vcpu")
    return (await vcpu_pb2_grpc.VcpuServiceStub(channel).CreateVcpu(request, timeout=_TIMEOUT_S)).vcpu.name


async def _delete(channel: grpc.aio.Channel, vcpu: str) -> None:
    vm = vcpu.partition("/vcpus/")[0]
    request = vm_pb2.DeleteVmRequest(name=vm, force=True, request_id=f"{vm}/delete")
    await vm_pb2_grpc.VmServiceStub(channel).DeleteVm(request, timeout=_TIMEOUT_S)


async def _session(channel: grpc.aio.Channel, vcpu: str) -> session_pb2.OpenSessionResponse:
    request = session_pb2.OpenSessionRequest(client_name="soak", vcpus=[vcpu], lease=_SOON)
    return await session_pb2_grpc.GuestSessionServiceStub(channel).OpenSession(request, timeout=_TIMEOUT_S)


def _hello(session: session_pb2.OpenSessionResponse) -> session_pb2.AttachRequest:
    return session_pb2.AttachRequest(hello=session_pb2.AttachHello(session=session.session, epoch=session.epoch))


def _event(vcpu: str, seq: int, **kind: Any) -> event_pb2.GuestEvent:  # noqa: ANN401 -- any kind of event
    return event_pb2.GuestEvent(vcpu=vcpu, seq=seq, **kind)


def _submit(
    session: session_pb2.OpenSessionResponse,
    vcpu: str,
    seq: int,
    **kind: Any,  # noqa: ANN401 -- any kind of event
) -> session_pb2.SubmitEventsRequest:
    batch = event_pb2.EventBatch(events=event_pb2.GuestEvents(events=[_event(vcpu, seq, **kind)]))
    return session_pb2.SubmitEventsRequest(session=session.session, epoch=session.epoch, batch=batch)
