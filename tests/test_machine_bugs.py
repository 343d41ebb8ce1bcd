"""What a bug of ours, and a caller with an old picture, cannot do."""

from __future__ import annotations

from typing import Any

import pytest

from fault_lab.injection.action import FailErrno
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.hit import Hit
from fault_lab.injection.table import ArmedFault
from fpu_core.errors import CoreBug
from host_agent import commands as c
from host_agent.errors import Refused
from host_agent.events import Enter, EventKind, GuestEvent, Outcome, RejectedOutcome, Xsetbv
from host_agent.exits import Decision, DecisionKind
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.outcome import Done, PendingWrite, ReallocExit
from host_agent.kvm.policy.on_swap import OnSwap
from host_agent.kvm.vcpu import Vcpu
from host_agent.machine import HostMachine
from host_agent.sessions import Opened
from host_agent.state import HostConfig, SessionRecord

VCPU = "vms/a/vcpus/0"
GROW = Xsetbv(0, 0x602E7)


class Rig:
    """A machine with one VM, one vCPU, a session and a controller."""

    def __init__(self) -> None:
        self.machine = HostMachine(HostConfig(faults=True, check_invariants=True))
        self.now_ns = 0
        self.seq = 0
        self.apply(c.CreateVm(vm_id="a"))
        self.apply(c.RequestPermission(vm="vms/a", feature=18, guest=True))
        self.apply(c.CreateVcpu(vm="vms/a", index=0))
        self.session = self.open()
        self.control = self.apply(c.AcquireControl(scope="", controller="test"))

    def apply(self, command: c.Command) -> Any:  # noqa: ANN401 -- each command has its own reply
        """Apply one command, a nanosecond after the last."""
        self.now_ns += 1
        return self.machine.apply(command, self.now_ns)

    def open(self) -> SessionRecord:
        """Open a session over the vCPU; numbers start again."""
        self.seq = 0
        opened: Opened = self.apply(c.OpenSession(client_name="test", vcpus=(VCPU,)))
        return opened.session

    def event(self, kind: EventKind) -> Outcome:
        """Submit one event with the next number."""
        self.seq += 1
        event = GuestEvent(VCPU, self.seq, kind)
        submit = c.SubmitBatch(session=self.session.name, epoch=self.session.epoch, events=(event,))
        outcomes: tuple[Outcome, ...] = self.apply(submit)
        return outcomes[0]

    def fail_next(self) -> None:
        """Let the next growth fail."""
        attributes = FaultAttributes(times=1)
        self.apply(c.ArmFault(point="fpstate.realloc.alloc", action=FailErrno(12), attributes=attributes))

    def resolve(self, kind: DecisionKind, generation: int = 1) -> None:
        """Decide the exit of the last event."""
        self.apply(
            c.ResolveExit(
                exit=f"{VCPU}/exits/{self.seq}",
                generation=generation,
                control=self.control.name,
                control_epoch=self.control.epoch,
                decision=Decision(kind, delay_ns=1000),
            )
        )

    @property
    def vcpu(self) -> Vcpu:
        """The vCPU, whichever has its name now."""
        return self.machine.state.vcpu(VCPU)

    def break_growth(self) -> None:
        """From now on the allocation policy of the VM has a bug."""
        self.vcpu.vm.policy = Buggy()


class Buggy(OnSwap):
    """A policy that fails an assertion of its own where it should grow."""

    def execute_write(self, vcpu: Vcpu, write: PendingWrite) -> Done | ReallocExit:
        """Never returns."""
        raise CoreBug("planted")


@pytest.fixture
def rig() -> Rig:
    """A fresh machine."""
    return Rig()


def _assert_contained(rig: Rig) -> None:
    """The vCPU is out of its thread, everything else goes on, and the VM can be removed to the last byte."""
    assert rig.vcpu.state is VcpuState.BROKEN
    assert not rig.vcpu.fpstate.in_use
    rig.apply(c.CreateVcpu(vm="vms/a", index=1))
    rig.apply(c.UseFeature(task="vms/a/tasks/vcpu-0", feature=2, offset=0, data=b"alive"))
    rig.apply(c.DeleteVm(vm="vms/a", force=True))
    assert rig.machine.state.allocator.host.used_bytes == 0


def test_a_bug_stops_the_vcpu_it_happened_on_and_says_so(rig: Rig) -> None:
    """The event is rejected with INTERNAL_INVARIANT, later ones with VCPU_BROKEN; the thread goes on without it."""
    rig.break_growth()
    outcome = rig.event(GROW)
    assert isinstance(outcome.kind, RejectedOutcome)
    assert (outcome.kind.reason, outcome.kind.metadata["invariant"]) == ("INTERNAL_INVARIANT", "planted")
    again = rig.event(GROW)
    assert isinstance(again.kind, RejectedOutcome)
    assert again.kind.reason == "VCPU_BROKEN"
    _assert_contained(rig)


@pytest.mark.parametrize("by_itself", [False, True], ids=["a RETRY", "a RETRY_AFTER that falls due"])
def test_a_bug_in_a_retry_settles_the_event(rig: Rig, *, by_itself: bool) -> None:
    """Whoever waits for the pending event hears that the vCPU was stopped, and the exit is cancelled."""
    rig.fail_next()
    rig.event(GROW)
    rig.break_growth()
    rig.resolve(DecisionKind.RETRY_AFTER if by_itself else DecisionKind.RETRY)
    if by_itself:
        rig.now_ns += 1000
        rig.apply(c.Tick())
    outcome = rig.machine.state.side(rig.vcpu).outcomes[rig.seq]
    assert isinstance(outcome.kind, RejectedOutcome)
    assert outcome.kind.reason == "INTERNAL_INVARIANT"
    assert not rig.machine.state.exits
    _assert_contained(rig)


def test_a_decision_for_a_deleted_vcpu_does_not_fit_its_successor(rig: Rig) -> None:
    """The successor's numbers start at 1, so its exit has the same name; the generation goes on from the old one's."""
    rig.fail_next()
    rig.event(GROW)
    rig.apply(c.DeleteVcpu(vcpu=VCPU))
    rig.apply(c.CreateVcpu(vm="vms/a", index=0))
    rig.session = rig.open()
    rig.fail_next()
    rig.event(GROW)
    with pytest.raises(Refused, match="at generation 2, not 1"):
        rig.resolve(DecisionKind.KILL_VCPU, generation=1)
    assert rig.vcpu.state is VcpuState.PARKED
    rig.resolve(DecisionKind.RETRY, generation=2)
    assert rig.vcpu.fpstate.size == 10_752


def test_another_process_cannot_run_the_vcpu(rig: Rig) -> None:
    """A forked child has the VM's permissions, and KVM_RUN returns EIO all the same."""
    rig.apply(c.CloneTask(task="vms/a/tasks/main", task_id="child", thread=False))
    outcome = rig.event(Enter("child"))
    assert isinstance(outcome.kind, RejectedOutcome)
    assert (outcome.kind.reason, outcome.kind.metadata["errnoName"]) == ("KVM_ERRNO", "EIO")


def test_interval_counts_what_comes_after_the_space_budget() -> None:
    """As in should_fail_ex(): a hit within ``space`` uses the budget up and is not counted."""
    fault = ArmedFault(name="f", point="p", action=FailErrno(12), attributes=FaultAttributes(space=250, interval=2))
    assert [fault.should_fail(Hit(point="p", size_bytes=100)) for _ in range(6)] == [
        False,
        False,
        False,
        True,
        False,
        True,
    ]
