"""Exits of a real host, decided by a real controller over a socket: what becomes of the guest's instruction.

Each guest does what a Linux guest does before its first tile instruction: it arms XFD, enables the tiles in XCR0, and
later clears XFD. The last write is the one that needs a larger container, and the one that exits where there is none.
"""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc
from fpstate.v1 import (
    event_pb2,
    exit_pb2,
    exit_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    vcpu_pb2,
    vcpu_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
)

from host_agent.exits import ExitState
from host_agent.service.clock import ManualClock
from host_agent.service.server import HostServer
from host_agent.state import HostConfig
from tests.test_controller_races import Watched, controlling
from vmm_controller.config import ControllerConfig
from vmm_controller.controller import Controller
from vmm_controller.error import CallError
from vmm_controller.policy import parse_policies

IA32_XFD: Final = 0x1C4
XTILE_DATA: Final = 1 << 18
#: x87, SSE, AVX, AVX-512 and the tiles.
TILES_ENABLED: Final = 0x600E7
ARM_XFD: Final = event_pb2.GuestEvent(wrmsr=event_pb2.Wrmsr(msr=IA32_XFD, value=XTILE_DATA))
ENABLE_TILES: Final = event_pb2.GuestEvent(xsetbv=event_pb2.Xsetbv(index=0, value=TILES_ENABLED))
CLEAR_XFD: Final = event_pb2.GuestEvent(wrmsr=event_pb2.Wrmsr(msr=IA32_XFD, value=0))
READ_XFD: Final = event_pb2.GuestEvent(rdmsr=event_pb2.Rdmsr(msr=IA32_XFD))
#: Longer than any test moves the clock in one step, so that leases end only where a test means them to.
LONG_LEASE_S: Final = 3600.0


@dataclass
class Host:
    """A host agent on a socket, with its clock in the test's hand."""

    server: HostServer
    clock: ManualClock
    channel: grpc.aio.Channel

    @property
    def target(self) -> str:
        """Where it listens."""
        return self.server.address

    async def fail_allocations(self, *, times: int, vm: str = "") -> None:
        """Let the next `times` growths of guests fail with ENOMEM."""
        fault = fault_pb2.Fault(
            point="fpstate.realloc.alloc",
            scope=fault_pb2.FaultScope(vm=vm),
            attributes=fault_pb2.FaultAttributes(times=times),
            action=fault_pb2.FaultAction(errno_action=fault_pb2.ErrnoAction(errno_value=errno.ENOMEM)),
        )
        stub: fault_pb2_grpc.FaultServiceAsyncStub = fault_pb2_grpc.FaultServiceStub(self.channel)
        await stub.ArmFault(fault_pb2.ArmFaultRequest(fault=fault), timeout=60)

    async def vm(self, vm_id: str, **fields: Any) -> str:  # noqa: ANN401
        """Make a VM whose guests may use tiles."""
        stub: vm_pb2_grpc.VmServiceAsyncStub = vm_pb2_grpc.VmServiceStub(self.channel)
        made = await stub.CreateVm(vm_pb2.CreateVmRequest(vm_id=vm_id, vm=vm_pb2.Vm(**fields)), timeout=60)
        permission = vm_pb2.RequestPermissionRequest(name=made.vm.name, scope=vm_pb2.PERMISSION_SCOPE_GUEST, feature=18)
        await stub.RequestPermission(permission, timeout=60)
        return made.vm.name

    async def guest(self, vm: str, index: int = 0) -> Guest:
        """Make a vCPU with a session of its own, whose guest is about to clear XFD."""
        vcpus: vcpu_pb2_grpc.VcpuServiceAsyncStub = vcpu_pb2_grpc.VcpuServiceStub(self.channel)
        made = await vcpus.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent=vm, index=index), timeout=60)
        sessions: session_pb2_grpc.GuestSessionServiceAsyncStub = session_pb2_grpc.GuestSessionServiceStub(self.channel)
        opened = await sessions.OpenSession(session_pb2.OpenSessionRequest(vcpus=[made.vcpu.name]), timeout=60)
        guest = Guest(sessions, opened.session, opened.epoch, made.vcpu.name)
        for event in (ARM_XFD, ENABLE_TILES):
            assert (await guest.send(event)).HasField("done")
        return guest

    async def exit_of(self, guest: Guest) -> exit_pb2.Exit:
        """The exit of the guest's last event."""
        stub: exit_pb2_grpc.ExitServiceAsyncStub = exit_pb2_grpc.ExitServiceStub(self.channel)
        reply = await stub.GetExit(exit_pb2.GetExitRequest(name=guest.exit_name), timeout=60)
        return reply.exit


@dataclass
class Guest:
    """One vCPU and the numbers of its events."""

    stub: session_pb2_grpc.GuestSessionServiceAsyncStub
    session: str
    epoch: int
    vcpu: str
    seq: int = 0

    @property
    def exit_name(self) -> str:
        """What an exit of the last event is called."""
        return f"{self.vcpu}/exits/{self.seq}"

    async def send(self, event: event_pb2.GuestEvent) -> event_pb2.EventOutcome:
        """Send one event and return its outcome, which may be pending."""
        self.seq += 1
        numbered = event_pb2.GuestEvent(vcpu=self.vcpu, seq=self.seq)
        numbered.MergeFrom(event)
        batch = event_pb2.EventBatch(events=event_pb2.GuestEvents(events=[numbered]))
        request = session_pb2.SubmitEventsRequest(session=self.session, epoch=self.epoch, batch=batch)
        reply = await self.stub.SubmitEvents(request, timeout=60)
        return reply.outcomes.outcomes[0]

    async def clear_xfd_and_exit(self) -> None:
        """Write XFD where no container can be had."""
        outcome = await self.send(CLEAR_XFD)
        assert outcome.HasField("pending"), outcome

    async def final(self) -> event_pb2.EventOutcome:
        """Wait for the final outcome of the last event."""
        request = session_pb2.WaitOutcomeRequest(session=self.session, epoch=self.epoch, vcpu=self.vcpu, seq=self.seq)
        reply = await self.stub.WaitOutcome(request, timeout=60)
        return reply.outcome

    async def xfd(self) -> int:
        """What the guest reads from IA32_XFD: proof that the vCPU runs."""
        outcome = await self.send(READ_XFD)
        return outcome.done.value


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    """A host with faults and every check on, and a clock that stands still."""
    clock = ManualClock()
    config = HostConfig(faults=True, check_invariants=True, default_lease_ns=3600 * 10**9)
    async with HostServer(config, f"unix:{tmp_path}/host.sock", clock=clock) as server:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(server.address, options=options) as channel:
            yield Host(server, clock, channel)


@asynccontextmanager
async def deciding(host: Host, timeline: Watched, *policies: str, **config: Any) -> AsyncIterator[Controller]:  # noqa: ANN401
    """A controller with these policies, until the end of the block."""
    config.setdefault("lease_s", LONG_LEASE_S)
    async with controlling(host.target, timeline, policies=parse_policies(policies), **config) as controller:
        yield controller


@pytest.mark.asyncio
async def test_a_growth_that_fails_twice_succeeds_after_two_waits(host: Host) -> None:
    """ENOMEM, RETRY_AFTER, ENOMEM, RETRY_AFTER, and the guest's write is done; the guest never knew."""
    timeline = Watched()
    guest = await host.guest(await host.vm("a"))
    await host.fail_allocations(times=2)
    async with deciding(host, timeline, "retry-after:base=100ms,factor=4,jitter=0"):
        await guest.clear_xfd_and_exit()
        for attempt, wait_s in ((1, 0.1), (2, 0.4)):
            decision = await timeline.until(event="decision", attempt=attempt)
            assert (decision["decision"], decision["delay_s"]) == ("RETRY_AFTER", wait_s)
            await timeline.until(event="result", state="APPLYING", generation=attempt)
            host.clock.advance(wait_s)
        outcome = await guest.final()
        await timeline.until(event="exit", state="RESOLVED")
    assert outcome.done.skip_instruction
    assert (outcome.done.reallocated.old_bytes, outcome.done.reallocated.new_bytes) == (2560, 10_752)
    assert await guest.xfd() == 0
    seen = [(event["state"], event["generation"], event["attempt"]) for event in timeline.all(event="exit")]
    assert seen == [("OPEN", 1, 1), ("APPLYING", 1, 1), ("OPEN", 2, 2), ("APPLYING", 2, 2), ("RESOLVED", 2, 3)]
    first = timeline.all(event="exit")[0]
    assert (first["cause"], first["errno_name"], first["trigger"]) == ("NO_MEMORY", "ENOMEM", "WRMSR_XFD")
    assert isinstance(first["bytes_needed"], int)
    assert first["bytes_needed"] >= 10_752


@pytest.mark.asyncio
async def test_a_refused_guest_gets_gp(host: Host) -> None:
    """INJECT_GP: #GP(0) at the write, XFD as before, and the vCPU runs on."""
    timeline = Watched()
    guest = await host.guest(await host.vm("a"))
    await host.fail_allocations(times=1)
    async with deciding(host, timeline, "inject-gp"):
        await guest.clear_xfd_and_exit()
        outcome = await guest.final()
        await timeline.until(event="result", result="INJECTED_GP")
    assert (outcome.inject.vector, outcome.inject.error_code) == (13, 0)
    assert await guest.xfd() == XTILE_DATA


@pytest.mark.asyncio
async def test_a_paused_vcpu_waits_for_a_person(host: Host) -> None:
    """PAUSE has no deadline; somebody who takes control of the VM decides the next generation by hand."""
    timeline = Watched()
    vm = await host.vm("a")
    guest = await host.guest(vm)
    await host.fail_allocations(times=1)
    stub: exit_pb2_grpc.ExitServiceAsyncStub = exit_pb2_grpc.ExitServiceStub(host.channel)
    async with deciding(host, timeline, "pause"):
        await guest.clear_xfd_and_exit()
        await timeline.until(event="exit", state="PAUSED", generation=2)
        host.clock.advance(1000)
        assert (await host.exit_of(guest)).state == exit_pb2.EXIT_STATE_PAUSED
        person = await stub.AcquireControl(
            exit_pb2.AcquireControlRequest(scope=vm, controller_name="person"), timeout=10
        )
        by_hand = exit_pb2.ResolveExitRequest(
            name=guest.exit_name,
            generation=2,
            control=person.control,
            control_epoch=person.epoch,
            decision=exit_pb2.Decision(retry=exit_pb2.Retry()),
        )
        await stub.ResolveExit(by_hand, timeout=60)
        assert (await guest.final()).HasField("done")
        ended = await timeline.until(event="exit", state="RESOLVED")
    assert (ended["decided_by"], ended["result"]) == ("person", "COMMITTED")
    assert len(timeline.all(event="decision")) == 1


@pytest.mark.asyncio
async def test_killing_a_vcpu_stops_it_and_no_other(host: Host) -> None:
    """KILL_VCPU: the event is gone, the VMM is told to stop, the other vCPU of the VM goes on."""
    timeline = Watched()
    vm = await host.vm("a")
    guest, other = await host.guest(vm), await host.guest(vm, 1)
    await host.fail_allocations(times=1)
    async with deciding(host, timeline, "kill-vcpu"):
        await guest.clear_xfd_and_exit()
        outcome = await guest.final()
        await timeline.until(event="result", result="VCPU_KILLED")
    assert outcome.gone.directive.kind == event_pb2.DIRECTIVE_KIND_STOP
    assert (await guest.send(READ_XFD)).HasField("rejected")
    assert await other.xfd() == XTILE_DATA


@pytest.mark.asyncio
async def test_killing_a_vm_cancels_its_other_exits(host: Host) -> None:
    """KILL_VM on one of two exits: one is resolved, the other cancelled; another VM's exit is neither."""
    timeline = Watched()
    vm = await host.vm("a")
    guests = [await host.guest(vm, index) for index in range(2)]
    bystander = await host.guest(await host.vm("b"))
    await host.fail_allocations(times=3)
    for guest in (*guests, bystander):
        await guest.clear_xfd_and_exit()
    async with deciding(host, timeline, "vms/a=kill-vm", "silent"):
        for guest in guests:
            assert (await guest.final()).gone.directive.kind == event_pb2.DIRECTIVE_KIND_STOP
        await timeline.until(event="result", result="VM_KILLED")
        await timeline.until(event="exit", state="CANCELLED")
        assert (await host.exit_of(bystander)).state == exit_pb2.EXIT_STATE_OPEN
    ends = {(await host.exit_of(guest)).state for guest in guests}
    assert ends == {exit_pb2.EXIT_STATE_RESOLVED, exit_pb2.EXIT_STATE_CANCELLED}


@pytest.mark.asyncio
async def test_a_limit_that_was_raised_lets_the_guest_grow(host: Host) -> None:
    """RAISE_LIMIT: the VM's budget was too small for the larger container, and is not any more."""
    timeline = Watched()
    guest = await host.guest(await host.vm("a", byte_limit=12_000))
    async with deciding(host, timeline, "raise-limit:to=64KiB"):
        await guest.clear_xfd_and_exit()
        assert (await guest.final()).done.reallocated.new_bytes == 10_752
    assert timeline.all(event="exit")[0]["cause"] == "QUOTA"


@pytest.mark.asyncio
async def test_a_silent_controller_parks_the_vcpu_and_nothing_else(host: Host) -> None:
    """A controller that says nothing: at the deadline the host pauses the vCPU, and the others never noticed."""
    timeline = Watched()
    vm = await host.vm("a")
    guest, other = await host.guest(vm), await host.guest(vm, 1)
    await host.fail_allocations(times=1)
    async with deciding(host, timeline, "silent"):
        await guest.clear_xfd_and_exit()
        await timeline.until(event="left", exit=guest.exit_name)
        assert (await other.send(CLEAR_XFD)).HasField("done")
        host.clock.advance(60)
        paused = await timeline.until(event="exit", state="PAUSED")
    assert paused["last_decision"] == "PAUSE"
    assert paused["decided_by"] != "controller"


@pytest.mark.asyncio
async def test_the_decision_of_a_fenced_controller_is_refused(host: Host) -> None:
    """A controller whose lease ended unnoticed is fenced off by its successor: its decision is refused, and it ends."""
    first, second = Watched(), Watched()
    vm = await host.vm("a")
    await host.fail_allocations(times=1)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(host.target, options=options) as channel:
        config = ControllerConfig(name="first", lease_s=LONG_LEASE_S, policies=parse_policies(["kill-vm"]))
        running = asyncio.create_task(Controller(channel, config, first).run())
        await first.until(event="watching")
        host.clock.advance(LONG_LEASE_S + 1)
        async with deciding(host, second, "silent", name="second"):
            guest = await host.guest(vm)
            await guest.clear_xfd_and_exit()
            await first.until(event="refused", reason="CONTROL_FENCED")
            with pytest.raises(CallError, match="CONTROL_FENCED"):
                await running
            exit_ = await host.exit_of(guest)
    assert (exit_.state, exit_.generation) == (exit_pb2.EXIT_STATE_OPEN, 1)
    assert await (await host.guest(vm, 1)).xfd() == XTILE_DATA


@pytest.mark.asyncio
async def test_a_second_controller_waits_for_the_scope(host: Host) -> None:
    """While one controller holds the host, another waits; it decides once the first has gone."""
    first, second = Watched(), Watched()
    guest = await host.guest(await host.vm("a"))
    await host.fail_allocations(times=1)
    async with grpc.aio.insecure_channel(host.target) as channel:
        async with deciding(host, first, "silent", name="first"):
            config = ControllerConfig(name="second", policies=parse_policies(["inject-gp"]))
            waiting = Controller(channel, config, second)
            running = asyncio.create_task(waiting.run())
            await second.until(event="control", what="held-by-another")
            await guest.clear_xfd_and_exit()
            await first.until(event="left")
        assert (await guest.final()).inject.vector == 13
        waiting.stop()
        await running


@pytest.mark.asyncio
async def test_who_holds_the_vm_decides_before_who_holds_the_host(host: Host) -> None:
    """The host's controller is told that the exit is not its own, goes on with other VMs, and takes over later."""
    of_host, of_vm = Watched(), Watched()
    guest, other = await host.guest(await host.vm("a")), await host.guest(await host.vm("b"))
    await host.fail_allocations(times=2)
    # Its lease is renewed by the system's clock, ten times a second, and never ends by the host's, which stands still.
    async with deciding(host, of_host, "inject-gp", name="of-host", lease_s=0.3):
        async with deciding(host, of_vm, "silent", name="of-vm", scope="vms/a"):
            await guest.clear_xfd_and_exit()
            await of_host.until(event="refused", reason="CONTROL_OUT_OF_SCOPE")
            await of_vm.until(event="left")
            await other.clear_xfd_and_exit()
            assert (await other.final()).inject.vector == 13
            assert (await host.exit_of(guest)).state == exit_pb2.EXIT_STATE_OPEN
        assert (await guest.final()).inject.vector == 13


# -- as a process ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def process_of(host: Host, *policies: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A controller as a process of its own, watching; its standard output is the timeline. Killed after the block."""
    program = (
        "import sys; from vmm_controller.config import ControllerConfig;"
        "from vmm_controller.policy import parse_policies; from vmm_controller.run import run_controller;"
        "config = ControllerConfig(policies=parse_policies(sys.argv[2:]), lease_s=3600);"
        "sys.exit(run_controller(sys.argv[1], config))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, host.target, *policies, stdout=asyncio.subprocess.PIPE
    )
    try:
        await told(process, event="watching")
        yield process
    finally:
        await kill(process)


async def kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL: nothing is said or released."""
    if process.returncode is None:
        process.kill()
    await process.wait()


async def told(process: asyncio.subprocess.Process, **wanted: object) -> dict[str, Any]:
    """Read the timeline until a line has all of `wanted`."""
    assert process.stdout is not None
    while line := await asyncio.wait_for(process.stdout.readline(), 60):
        event: dict[str, Any] = json.loads(line)
        if wanted.items() <= event.items():
            return event
    raise AssertionError(f"the timeline ended without {wanted}")


@pytest.mark.asyncio
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_signal_ends_a_controller_with_its_control_released(host: Host, number: signal.Signals) -> None:
    """SIGTERM and SIGINT: control is given back, the status is 0."""
    async with process_of(host) as process:
        assert len(host.server.agent.state.controls) == 1
        process.send_signal(number)
        assert (await told(process, event="control", what="released"))["time_s"] > 0
        assert await process.wait() == 0
    assert not host.server.agent.state.controls


@pytest.mark.asyncio
async def test_a_controller_killed_in_the_middle_leaves_the_other_vcpus_running(host: Host) -> None:
    """SIGKILL between two exits: one vCPU stays parked, the others run, and the next controller decides."""
    vm = await host.vm("a")
    guest, other = await host.guest(vm), await host.guest(vm, 1)
    await host.fail_allocations(times=2)
    async with process_of(host, "retry-after:base=10,max=60,jitter=0") as process:
        await guest.clear_xfd_and_exit()
        await told(process, event="result", state="APPLYING")
        await kill(process)
    host.clock.advance(10)
    exit_ = await host.exit_of(guest)
    assert (exit_.state, exit_.attempt) == (exit_pb2.EXIT_STATE_OPEN, 2)
    assert await other.xfd() == XTILE_DATA
    assert (await other.send(CLEAR_XFD)).HasField("done")

    timeline = Watched()
    async with deciding(host, timeline, "retry-after:base=10,max=60,jitter=0"):
        decision = await timeline.until(event="decision")
        assert (decision["attempt"], decision["delay_s"]) == (2, 20.0)
        await timeline.until(event="result", state="APPLYING")
        host.clock.advance(20)
        assert (await guest.final()).HasField("done")


@pytest.mark.asyncio
async def test_a_dead_controllers_exit_is_paused_at_its_deadline(host: Host) -> None:
    """With nobody left to decide, the host takes its default action; nothing is guessed."""
    guest = await host.guest(await host.vm("a"))
    await host.fail_allocations(times=1)
    async with process_of(host, "silent") as process:
        await guest.clear_xfd_and_exit()
        await told(process, event="left")
        await kill(process)
    host.clock.advance(31)
    assert host.server.agent.state.exits[guest.exit_name].state is ExitState.PAUSED
