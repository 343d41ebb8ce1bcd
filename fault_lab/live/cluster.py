"""The processes of a plan's topology: hosts, controllers and guest agents, each may be killed and come back.

    with LiveCluster(plan, directory) as cluster:
        cluster.start()
        cluster["host"].kill()
        cluster.launch("host")

    DIRECTORY/host.sock, host-state/, host.log      a host's socket, its journal, what it says on standard error
    DIRECTORY/vms-a.log, ctl.log                    what the others say

Everything is ended when the context ends, and by the kernel where this process is killed (child). Who carries messages
in between (a proxy) says so with ``route``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

import grpc
from fpstate.fault.v1 import plan_pb2
from fpstate.v1 import host_pb2, host_pb2_grpc

from fault_lab.injection.draw import subseed
from fault_lab.live.guest import GuestOrder
from fault_lab.live.process import LiveProcess, OnLine
from fault_lab.wire.duration import NS_PER_S, duration_ns

T = TypeVar("T")

#: A connection that is nobody else's, and comes back soon.
LOCAL: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
)
#: How long a process has to be ready, in seconds.
READY_S: Final = 60.0
_POLL_S: Final = 0.02
_LISTENING: Final = re.compile(r"listening on ([^,;\s]+)")
#: The longest path of a socket. Source: sockaddr_un, unix(7).
_SOCKET_MAX: Final = 107
#: From a node and the host it talks to, and where that listens, to where the node shall connect.
Route = Callable[[str, str, str], str]


class NotReadyError(Exception):
    """A process has ended, or is not ready in time. The text has the last lines of its standard error."""


class LiveCluster:
    """The nodes of one run. ``on_line`` hears of each line that a controller or a guest agent says, and of each end.

    ``broken`` names the version of ``fault_lab.broken`` that the hosts are.
    """

    def __init__(
        self,
        plan: plan_pb2.Plan,
        directory: Path,
        *,
        seed: int | None = None,
        tcp: bool = False,
        fault_points: str = "",
        route: Route = lambda _node, _host, address: address,
        on_line: OnLine = lambda _process, _line: None,
        broken: str = "",
    ) -> None:
        self.plan = plan
        self.seed = plan.seed if seed is None else seed
        self.directory = directory
        self._tcp = tcp
        self._fault_points = fault_points
        self._route = route
        self._broken = broken
        there = plan.topology
        first = there.hosts[0].name
        self.hosts = {each.name: each for each in there.hosts}
        self.controllers = {each.name: each for each in there.controllers}
        self.guests = {f"vms/{each.name}": each for each in there.vms}
        self.host_of = {f"vms/{each.name}": each.host or first for each in there.vms}
        self.host_of |= {each.name: each.host or first for each in there.controllers}
        self.nodes = {
            name: LiveProcess(name, directory, on_line) for name in (*self.hosts, *self.controllers, *self.guests)
        }
        #: Where each host listens.
        self.addresses: dict[str, str] = {}
        #: Rounds and endings of vCPUs, which outlive their agent's process: who starts it again knows what is to do.
        self.rounds: dict[str, int] = {}
        self.endings: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> LiveProcess:
        return self.nodes[name]

    def start(self) -> None:
        """Start everything: hosts first, and the others when those are ready. Raises ``NotReadyError``."""
        self.start_hosts()
        for name in (*self.controllers, *self.guests):
            self.launch(name)

    def start_hosts(self) -> None:
        """Start the hosts, and wait until each answers. Raises ``NotReadyError``."""
        for name in self.hosts:
            self.launch(name)
        for name in self.hosts:
            self.wait_ready(name)

    def close(self) -> None:
        """End everything: who asks before who is asked."""
        for process in reversed(self.nodes.values()):
            process.stop()

    # -- one process ---------------------------------------------------------------------------------------------------

    def launch(self, name: str) -> None:
        """Start a node's process, and wait for nothing."""
        process = self.nodes[name]
        if name in self.hosts:
            arguments = self._host_arguments(self.hosts[name])
            if self._broken:
                process.start("fault_lab.broken", [self._broken, *arguments])
            else:
                process.start("fpstated", arguments)
        elif name in self.controllers:
            process.start("fpstated", self._controller_arguments(self.controllers[name]))
        else:
            order = GuestOrder.of(
                self.plan,
                self.seed,
                self.guests[name].name,
                host=self.address_for(name),
                life=process.life,
                rounds=self._of(name, self.rounds),
                endings=self._of(name, self.endings),
                fault_points=self._fault_points,
            )
            process.start("fault_lab.live.guest", (), said=order.line())

    @staticmethod
    def _of(vm: str, by_vcpu: dict[str, T]) -> dict[str, T]:
        return {vcpu: value for vcpu, value in by_vcpu.items() if vcpu.startswith(f"{vm}/")}

    def wait_ready(self, name: str, timeout_s: float = READY_S) -> None:
        """Wait until a host answers. Raises ``NotReadyError``."""
        until_s = time.monotonic() + timeout_s
        while not self.is_ready(name):
            process = self.nodes[name]
            if not process.running:
                raise NotReadyError(f"{name} ended with status {process.status}:\n{process.tail()}")
            if time.monotonic() > until_s:
                raise NotReadyError(f"{name} is not ready after {timeout_s:g} s:\n{process.tail()}")
            time.sleep(_POLL_S)

    def is_ready(self, name: str) -> bool:
        """Whether a host answers now."""
        address = self._listens(name)
        if not address:
            return False
        with closing(grpc.insecure_channel(address, options=LOCAL)) as channel:
            stub = host_pb2_grpc.HostServiceStub(channel)
            try:
                stub.GetHostInfo(host_pb2.GetHostInfoRequest(), timeout=1.0)
            except grpc.RpcError:
                return False
        self.addresses[name] = address
        return True

    def _listens(self, name: str) -> str:
        """Where a host listens, as it says itself; it comes back there. Empty where it has not said anything yet."""
        if name in self.addresses or not self._tcp:
            return self.addresses.get(name) or self._socket(name)
        found = _LISTENING.search(self.nodes[name].tail(50))
        return found[1] if found else ""

    def address_for(self, node: str) -> str:
        """Where a guest or a controller connects to."""
        host = self.host_of[node]
        return self._route(node, host, self.addresses[host])

    # -- arguments -----------------------------------------------------------------------------------------------------

    def _socket(self, name: str) -> str:
        path = f"{self.directory.absolute()}/{name}.sock"
        if len(path) > _SOCKET_MAX:
            raise ValueError(f"directory: expected one whose sockets have at most {_SOCKET_MAX} bytes, got {path!r}")
        return f"unix:{path}"

    def _host_arguments(self, host: plan_pb2.PlannedHost) -> list[str]:
        listen = self.addresses.get(host.name) or ("127.0.0.1:0" if self._tcp else self._socket(host.name))
        made = ["host", "--listen", listen, "--name", host.name, "--faults", "--check-invariants", "--grace", "0"]
        made += ["--insecure-tcp"] if self._tcp else []
        state_dir = str(self.directory / f"{host.name}-state")
        made += ["--ephemeral"] if host.ephemeral else ["--state-dir", state_dir]
        if self._fault_points and not host.ephemeral:
            made += ["--fault-points", self._fault_points]
        made += _given("--profile", host.profile) + _given("--kernel-rules", host.kernel_rules)
        made += _given("--cpus", str(host.cpus) if host.cpus else "")
        made += _given("--byte-limit", str(host.byte_limit) if host.HasField("byte_limit") else "")
        return made + _given("--exit-deadline", _seconds(host, "exit_deadline"))

    def _controller_arguments(self, controller: plan_pb2.PlannedController) -> list[str]:
        address = self.address_for(controller.name)
        made = ["controller", "--host", address, "--name", controller.name, "--timeline"]
        made += ["--seed", str(subseed(self.seed, f"controller/{controller.name}"))]
        made += _given("--scope", f"vms/{controller.vm}" if controller.vm else "")
        made += _given("--lease", _seconds(self.hosts[self.host_of[controller.name]], "default_lease"))
        made += _given("--fault-points", self._fault_points)
        return made + [word for policy in controller.policies for word in ("--policy", policy)]


def _given(flag: str, value: str) -> list[str]:
    return [flag, value] if value else []


def _seconds(host: plan_pb2.PlannedHost, field: Literal["exit_deadline", "default_lease"]) -> str:
    return repr(duration_ns(field, getattr(host, field)) / NS_PER_S) if host.HasField(field) else ""
