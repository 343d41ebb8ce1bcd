"""A host agent in the process of a test: on the test's own event loop, or on a thread for tests that block."""

from __future__ import annotations

import asyncio
import errno as errno_names
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio

from fault_lab.injection.action import FailErrno
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.hit import Selector
from fault_lab.injection.table import ArmedFault
from fpu_core.alloc import POINT_REALLOC_ALLOC
from fpu_core.xfeature import XFEATURE_XTILE_DATA
from guest_agent.aio import AsyncSession, open_async_session
from guest_agent.aio_port import AsyncVcpuPort
from guest_agent.port import VcpuPort
from guest_agent.session import Session, open_session
from host_agent.commands import ArmFault, Command, CreateVcpu, CreateVm, RequestPermission
from host_agent.exits import ExitRecord
from host_agent.machine import HostMachine
from host_agent.service.clock import Clock, ManualClock
from host_agent.service.server import HostServer
from host_agent.state import HostConfig
from vmm_controller.config import ControllerConfig
from vmm_controller.controller import Controller
from vmm_controller.policy import parse_policies

T = TypeVar("T")

#: Nobody's lease is to end because a test was slow, or moved the clock.
_LEASE_S = 3600.0
_WAIT_S = 30.0


class AsyncHostUnderTest:
    """A host on the running event loop. ``address`` is where it listens; ``clock`` is what it was given."""

    def __init__(self, server: HostServer, clock: Clock | None) -> None:
        self._server = server
        self._sessions: list[AsyncSession] = []
        self._controllers: list[tuple[Controller, asyncio.Task[None], grpc.aio.Channel]] = []
        self.address = server.address
        self.clock = clock

    @property
    def machine(self) -> HostMachine:
        """What the host knows: to look at, not to touch."""
        return self._server.agent.machine

    def submit(self, command: Command) -> Any:  # noqa: ANN401 -- each command has its own reply
        """Carry a command out, and return its reply. Raises ``Refused``."""
        return self._server.agent.submit(command)

    def make_vcpu(self, name: str, *, permission: bool) -> None:
        """Make the VM and the vCPU of ``name`` (``vms/{vm}/vcpus/{index}``) where they do not exist."""
        vm, _, index = name.partition("/vcpus/")
        submit = self.submit
        if vm not in self.machine.state.vms:
            submit(CreateVm(vm_id=vm.removeprefix("vms/")))
            if permission:
                submit(RequestPermission(vm=vm, feature=XFEATURE_XTILE_DATA, guest=True))
        if int(index) not in self.machine.state.vms[vm].kvm.vcpus:
            submit(CreateVcpu(vm=vm, index=int(index)))

    async def vcpu(self, name: str = "vms/a/vcpus/0", *, permission: bool = True) -> AsyncVcpuPort:
        """Return the port of a vCPU; VM (with guest permission for AMX), vCPU and session are made if need be."""
        self.make_vcpu(name, permission=permission)
        session = await open_async_session(self.address, vcpus=[name], client_name="test", lease_s=_LEASE_S)
        self._sessions.append(session)
        return session.vcpu(name)

    def fail_allocation(
        self,
        nth: int = 1,
        errno: str | int = "ENOMEM",
        *,
        times: int = 1,
        point: str = POINT_REALLOC_ALLOC,
        vm: str = "",
        vcpu: str = "",
    ) -> list[ArmedFault]:
        """Fail allocations ``nth`` to ``nth + times - 1`` from now; ``fired`` of what is returned proves that."""
        number = errno if isinstance(errno, int) else getattr(errno_names, errno)
        faults = []
        for hit in range(nth, nth + times):
            fault = ArmFault(
                point=point,
                action=FailErrno(number),
                selector=Selector(vm=vm, vcpu=vcpu),
                attributes=FaultAttributes(fail_nth=hit),
                owner="test",
            )
            faults.append(self.submit(fault))
        return faults

    async def controller(self, *policies: str) -> Controller:
        """Start a controller with policies as ``fpstated controller --policy`` takes them; none: the default one."""
        channel = grpc.aio.insecure_channel(self.address)
        name = f"test-{len(self._controllers)}"
        config = ControllerConfig(name=name, lease_s=_LEASE_S, policies=parse_policies(policies))
        controller = Controller(channel, config)
        task = asyncio.ensure_future(controller.run())
        self._controllers.append((controller, task, channel))
        watching = asyncio.ensure_future(controller.watching.wait())
        await asyncio.wait({watching, task}, timeout=_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        if task.done():
            task.result()
        return controller

    async def exit_opened(self, timeout_s: float = _WAIT_S) -> ExitRecord:
        """Wait until an exit is open and return the oldest."""
        async with asyncio.timeout(timeout_s):
            while not self.machine.state.exits:  # noqa: ASYNC110 -- the machine is pure: it calls nobody
                await asyncio.sleep(0.005)
        return next(iter(self.machine.state.exits.values()))

    def advance(self, seconds: float) -> None:
        """Move a manual clock on; what falls due happens before this returns."""
        if not isinstance(self.clock, ManualClock):
            raise TypeError("this host runs on the system's clock: ask for the fixture fpstated_clock as well")
        self.clock.advance(seconds)

    async def close(self) -> None:
        """End what was started here, newest first."""
        for controller, task, channel in reversed(self._controllers):
            controller.stop()
            with suppress(Exception):
                await asyncio.wait_for(task, _WAIT_S)
            await channel.close()
        for session in reversed(self._sessions):
            await session.close()


@asynccontextmanager
async def async_host(config: HostConfig, clock: Clock | None = None) -> AsyncIterator[AsyncHostUnderTest]:
    """A host on the running loop, on a socket nobody else knows."""
    with tempfile.TemporaryDirectory(prefix="fpstated-test-") as folder:
        async with HostServer(config, f"unix:{Path(folder) / 'host.sock'}", clock=clock) as server:
            host = AsyncHostUnderTest(server, clock)
            try:
                yield host
            finally:
                await host.close()


class HostUnderTest:
    """A host on a thread of its own, for tests that block: each call of a port waits for the final outcome."""

    def __init__(self, host: AsyncHostUnderTest, loop: asyncio.AbstractEventLoop, stack: ExitStack) -> None:
        self._host = host
        self._loop = loop
        self._stack = stack
        self.address = host.address

    @property
    def machine(self) -> HostMachine:
        """What the host knows: to look at while nothing is under way."""
        return self._host.machine

    def submit(self, command: Command) -> Any:  # noqa: ANN401 -- as there
        """As ``AsyncHostUnderTest.submit``."""
        return self.call(lambda: self._host.submit(command))

    def vcpu(self, name: str = "vms/a/vcpus/0", *, permission: bool = True) -> VcpuPort:
        """Return the port of a vCPU; VM (with guest permission for AMX), vCPU and session are made if need be."""
        self.call(lambda: self._host.make_vcpu(name, permission=permission))
        session: Session = self._stack.enter_context(
            open_session(self.address, vcpus=[name], client_name="test", lease_s=_LEASE_S)
        )
        return session.vcpu(name)

    def fail_allocation(
        self,
        nth: int = 1,
        errno: str | int = "ENOMEM",
        *,
        times: int = 1,
        point: str = POINT_REALLOC_ALLOC,
        vm: str = "",
        vcpu: str = "",
    ) -> list[ArmedFault]:
        """As ``AsyncHostUnderTest.fail_allocation``."""
        return self.call(lambda: self._host.fail_allocation(nth, errno, times=times, point=point, vm=vm, vcpu=vcpu))

    def controller(self, *policies: str) -> Controller:
        """As ``AsyncHostUnderTest.controller``."""
        return self.run(self._host.controller(*policies))

    def exit_opened(self, timeout_s: float = _WAIT_S) -> ExitRecord:
        """As ``AsyncHostUnderTest.exit_opened``."""
        return self.run(self._host.exit_opened(timeout_s))

    def advance(self, seconds: float) -> None:
        """As ``AsyncHostUnderTest.advance``."""
        self.call(lambda: self._host.advance(seconds))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the host's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_WAIT_S)

    def call(self, function: Callable[[], T]) -> T:
        """Call ``function`` on the host's loop, where nothing else happens meanwhile."""

        async def on_the_loop() -> T:
            return function()

        return self.run(on_the_loop())


@contextmanager
def host_on_a_thread(config: HostConfig, clock: Clock | None = None) -> Iterator[HostUnderTest]:
    """A host whose loop runs on a thread until the context ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fpstated-test-host", daemon=True)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(_WAIT_S)

    context = async_host(config, clock)
    try:
        host = run(context.__aenter__())
        try:
            with ExitStack() as sessions:
                yield HostUnderTest(host, loop, sessions)
        finally:
            run(context.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_WAIT_S)
        loop.close()


__all__: Sequence[str] = ("AsyncHostUnderTest", "HostUnderTest", "async_host", "host_on_a_thread")
