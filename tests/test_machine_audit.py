"""The audit: every decision that was taken, who took it and why, and what came of it."""

from __future__ import annotations

import pytest

from fault_lab.injection.action import FailErrno
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.hit import Selector
from fpu_core.alloc import POINT_REALLOC_ALLOC
from host_agent.audit import DEADLINE, Decider
from host_agent.commands import ArmFault, CreateVcpu, CreateVm, DeleteVcpu, RequestPermission, ResolveExit, Tick
from host_agent.errors import Refused
from host_agent.events import Init, PendingOutcome, Xsetbv
from host_agent.exits import Decision, DecisionKind, ExitRecord, ExitResult, ExitState
from tests.core.host import SECOND_NS, Host, host_config

VM = "vms/a"
VCPU = f"{VM}/vcpus/0"
ANNA = Decider(name="anna", principal="test/operator/anna", reason="ticket 12")


def parked(*, times: int = -1, **config: int) -> tuple[Host, ExitRecord]:
    """A host whose one vCPU waits on an exit; growth fails as often as ``times`` says."""
    host = Host(host_config(exit_deadline_ns=10 * SECOND_NS, **config))
    host.apply(CreateVm(vm_id="a"))
    host.apply(RequestPermission(vm=VM, feature=18, guest=True))
    host.apply(CreateVcpu(vm=VM, index=0))
    host.apply(
        ArmFault(
            point=POINT_REALLOC_ALLOC,
            action=FailErrno(12),
            selector=Selector(vm=VM),
            attributes=FaultAttributes(times=times),
        )
    )
    pending = host.event(VCPU, Xsetbv(0, 0x602E7)).kind
    assert isinstance(pending, PendingOutcome)
    return host, host.machine.state.exits[pending.exit]


def decide(host: Host, record: ExitRecord, decision: Decision, who: Decider = ANNA) -> None:
    """Decide the exit as it is now."""
    control, epoch = host.control()
    host.apply(
        ResolveExit(
            exit=record.name,
            generation=record.generation,
            control=control,
            control_epoch=epoch,
            decision=decision,
            decided_by=who.name,
            principal=who.principal,
            reason=who.reason,
        )
    )


@pytest.mark.parametrize(
    ("kind", "times", "state", "result"),
    [
        pytest.param(DecisionKind.RETRY, 1, ExitState.RESOLVED, ExitResult.COMMITTED, id="a retry that grows"),
        pytest.param(DecisionKind.RETRY, -1, ExitState.OPEN, None, id="a retry that fails again"),
        pytest.param(DecisionKind.PAUSE, -1, ExitState.PAUSED, None, id="a pause"),
        pytest.param(DecisionKind.INJECT_GP, -1, ExitState.RESOLVED, ExitResult.INJECTED_GP, id="#GP"),
        pytest.param(DecisionKind.KILL_VCPU, -1, ExitState.RESOLVED, ExitResult.VCPU_KILLED, id="the vCPU is killed"),
        pytest.param(DecisionKind.KILL_VM, -1, ExitState.RESOLVED, ExitResult.VM_KILLED, id="the VM is killed"),
        pytest.param(DecisionKind.RESET_VM, -1, ExitState.RESOLVED, ExitResult.VM_RESET, id="the VM is reset"),
    ],
)
def test_a_decision_says_who_when_what_why_and_what_came_of_it(
    kind: DecisionKind, times: int, state: ExitState, result: ExitResult | None
) -> None:
    """One record a decision, with the exit and the generation that it was about."""
    host, record = parked(times=times)
    decide(host, record, Decision(kind))
    (found,) = host.machine.state.audit.decisions.values()
    assert (found.number, found.decider, found.decision) == (1, ANNA, Decision(kind))
    assert (found.exit, found.vm, found.generation, found.cause) == (record.name, VM, 1, record.cause)
    assert (found.at_ns, found.revision) == (host.now_ns, host.machine.state.revision)
    assert (found.state, found.result) == (state, result)


def test_the_default_action_is_in_it() -> None:
    """Nobody called: the record has no principal."""
    host, record = parked()
    host.apply(Tick(), after_ns=10 * SECOND_NS)
    (found,) = host.machine.state.audit.decisions.values()
    assert (found.decider, found.decision.kind, found.state) == (DEADLINE, DecisionKind.PAUSE, record.state)
    assert DEADLINE.principal == ""


@pytest.mark.parametrize(
    ("times", "how", "state", "result"),
    [
        pytest.param(1, "time", ExitState.RESOLVED, ExitResult.COMMITTED, id="the retry grows"),
        pytest.param(-1, "time", ExitState.OPEN, None, id="the retry fails"),
        pytest.param(-1, "INIT", ExitState.CANCELLED, ExitResult.VCPU_INIT, id="INIT comes before"),
        pytest.param(-1, "delete", ExitState.CANCELLED, ExitResult.DELETED, id="the vCPU is deleted before"),
    ],
)
def test_a_delayed_decision_is_completed_later(
    times: int, how: str, state: ExitState, result: ExitResult | None
) -> None:
    """RETRY_AFTER is APPLYING until its retry was made or cannot be made any more."""
    host, record = parked(times=times)
    decide(host, record, Decision(DecisionKind.RETRY_AFTER, delay_ns=SECOND_NS))
    found = host.machine.state.audit.decisions[1]
    assert (found.state, found.result) == (ExitState.APPLYING, None)
    match how:
        case "time":
            host.apply(Tick(), after_ns=SECOND_NS)
        case "INIT":
            host.event(VCPU, Init())
        case _:
            host.apply(DeleteVcpu(vcpu=VCPU))
    assert (found.state, found.result) == (state, result)
    assert len(host.machine.state.audit.decisions) == 1


def test_what_came_later_is_not_an_earlier_decisions_result() -> None:
    """The pause stays a pause when another decision settles the exit."""
    host, record = parked(times=1)
    decide(host, record, Decision(DecisionKind.PAUSE))
    decide(host, record, Decision(DecisionKind.RETRY))
    audit = host.machine.state.audit.decisions
    assert [(each.number, each.generation, each.state) for each in audit.values()] == [
        (1, 1, ExitState.PAUSED),
        (2, 2, ExitState.RESOLVED),
    ]


def test_what_was_refused_is_not_in_it() -> None:
    """A decision that loses, or that the exit does not allow, decided nothing."""
    host, record = parked()
    with pytest.raises(Refused, match="DEFER is not for"):
        decide(host, record, Decision(DecisionKind.DEFER))
    assert not host.machine.state.audit.decisions


def test_it_is_bounded() -> None:
    """The latest are kept, and numbered on."""
    host, record = parked(max_decisions=3)
    for _ in range(5):
        decide(host, record, Decision(DecisionKind.RETRY))
    assert list(host.machine.state.audit.decisions) == [3, 4, 5]
    assert host.machine.state.audit.count == 5


def test_it_is_part_of_what_the_host_knows() -> None:
    """A replay of the log, a recovery from the journal and a snapshot have the same audit, and so the same digest."""
    host, record = parked(times=2)
    decide(host, record, Decision(DecisionKind.RETRY))
    decide(host, record, Decision(DecisionKind.RETRY_AFTER, delay_ns=SECOND_NS), Decider(name="bert"))
    host.apply(Tick(), after_ns=SECOND_NS)
    mine = host.machine.state.audit
    for other in (host.replayed(), host.recovered(), host.reloaded().machine):
        theirs = other.state.audit
        assert [each.decider for each in theirs.decisions.values()] == [
            each.decider for each in mine.decisions.values()
        ]
        assert other.digest() == host.machine.digest()
    mine.decisions[1].decider = Decider(name="somebody else")
    assert host.machine.digest() != host.replayed().digest()
