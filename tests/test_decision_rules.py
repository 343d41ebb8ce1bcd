"""Every decision on every kind of exit, in every state: taken, or refused with its reason, and nothing changed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from fault_lab.injection.action import FailErrno
from fault_lab.injection.attributes import FaultAttributes
from fpu_core.alloc import POINT_REALLOC_ALLOC
from fpu_core.xfeature import MSR_IA32_XFD
from host_agent.commands import ArmFault, CreateVcpu, CreateVm, RequestPermission, ResolveExit
from host_agent.decision_rules import (
    DEFAULT_ACTIONS,
    RULES,
    allowed_decisions,
    decisions_table,
    refusals_table,
    why_not,
)
from host_agent.errors import Reason, Refused
from host_agent.events import PendingOutcome, Wrmsr, Xsetbv
from host_agent.exits import Decision, DecisionKind, ExitCause, ExitRecord, ExitState
from host_agent.kvm.lifecycle import VcpuState
from tests.core.host import SECOND_NS, Host, host_config

VM = "vms/a"
VCPU = f"{VM}/vcpus/0"
AMX, TILE_DATA = 0x602E7, 1 << 18

D = DecisionKind
#: What is always allowed, and what memory allows besides.
ALWAYS = {D.INJECT_GP, D.PAUSE, D.KILL_VCPU, D.KILL_VM, D.RESET_VM, D.HIDE_FEATURE, D.MIGRATE}
MEMORY = {D.RETRY, D.RETRY_AFTER, D.RECLAIM}
ARMED = {D.DEFER, D.INJECT_NM}
#: (cause, trigger) -> the decisions that an exit takes. Said here by hand, a second time.
EXPECTED = {
    (ExitCause.NO_MEMORY, "XSETBV"): ALWAYS | MEMORY,
    (ExitCause.NO_MEMORY, "WRMSR XFD"): ALWAYS | MEMORY | ARMED,
    (ExitCause.QUOTA, "XSETBV"): ALWAYS | MEMORY | {D.RAISE_LIMIT},
    (ExitCause.QUOTA, "WRMSR XFD"): ALWAYS | MEMORY | {D.RAISE_LIMIT} | ARMED,
    (ExitCause.NO_PERMISSION, "XSETBV"): ALWAYS,
    (ExitCause.NO_PERMISSION, "WRMSR XFD"): ALWAYS | ARMED,
}
#: Where each decision leaves the exit and the vCPU where growing fails again, or, at RAISE_LIMIT, succeeds.
AFTER = {
    D.RETRY: (ExitState.OPEN, VcpuState.PARKED),
    D.RETRY_AFTER: (ExitState.APPLYING, VcpuState.PARKED),
    D.RAISE_LIMIT: (ExitState.RESOLVED, VcpuState.ENTERED),
    D.RECLAIM: (ExitState.OPEN, VcpuState.PARKED),
    D.INJECT_GP: (ExitState.RESOLVED, VcpuState.ENTERED),
    D.INJECT_NM: (ExitState.RESOLVED, VcpuState.ENTERED),
    D.DEFER: (ExitState.RESOLVED, VcpuState.ENTERED),
    D.PAUSE: (ExitState.PAUSED, VcpuState.PAUSED),
    D.KILL_VCPU: (ExitState.RESOLVED, VcpuState.KILLED),
    D.KILL_VM: (ExitState.RESOLVED, VcpuState.KILLED),
    D.RESET_VM: (ExitState.RESOLVED, VcpuState.OUTSIDE),
    D.HIDE_FEATURE: (ExitState.RESOLVED, VcpuState.ENTERED),
    D.MIGRATE: (ExitState.APPLYING, VcpuState.PARKED),
}


def exit_of(cause: ExitCause, trigger: str, **config: object) -> tuple[Host, ExitRecord]:
    """A host whose vCPU waits on an exit of that kind."""
    host = Host(host_config(exit_deadline_ns=10 * SECOND_NS, **config))
    host.apply(CreateVm(vm_id="a", byte_limit=12_000 if cause is ExitCause.QUOTA else None))
    if cause is not ExitCause.NO_PERMISSION:
        host.apply(RequestPermission(vm=VM, feature=18, guest=True))
    host.apply(CreateVcpu(vm=VM, index=0))
    if cause is ExitCause.NO_MEMORY:
        host.apply(ArmFault(point=POINT_REALLOC_ALLOC, action=FailErrno(12), attributes=FaultAttributes(times=-1)))
    if trigger == "XSETBV":
        pending = host.event(VCPU, Xsetbv(0, AMX)).kind
    else:
        host.events(VCPU, Wrmsr(MSR_IA32_XFD, TILE_DATA), Xsetbv(0, AMX))
        pending = host.event(VCPU, Wrmsr(MSR_IA32_XFD, 0)).kind
    assert isinstance(pending, PendingOutcome)
    record = host.machine.state.exits[pending.exit]
    assert (record.cause, record.write.trigger.value) == (cause, trigger)
    return host, record


def decision(kind: DecisionKind) -> Decision:
    """A decision of a kind, with all that it needs."""
    return Decision(kind, delay_ns=SECOND_NS, bytes=100_000, any_victim=True, target="other:1")


def resolve(host: Host, record: ExitRecord, what: Decision) -> object:
    """Decide the exit as it is now; the refusal is a value."""
    control, epoch = host.control()
    command = ResolveExit(
        exit=record.name, generation=record.generation, control=control, control_epoch=epoch, decision=what
    )
    return host.tried(command)


CASES = [
    pytest.param(*case, kind, id=f"{kind.name} for {case[0].value} on {case[1]}") for case in EXPECTED for kind in D
]


@pytest.mark.parametrize("paused", [False, True], ids=["OPEN", "PAUSED"])
@pytest.mark.parametrize(("cause", "trigger", "kind"), CASES)
def test_every_decision(cause: ExitCause, trigger: str, kind: DecisionKind, paused: bool) -> None:
    """What the table allows is taken and leads where it should; what it does not is refused with a reason."""
    host, record = exit_of(cause, trigger)
    if paused:
        resolve(host, record, Decision(D.PAUSE))
        assert record.state is ExitState.PAUSED
    before = host.machine.state.revision, record.generation, record.state, len(host.machine.state.audit.decisions)
    assert allowed_decisions(record) == EXPECTED[cause, trigger]
    reply = resolve(host, record, decision(kind))
    if kind not in EXPECTED[cause, trigger]:
        assert isinstance(reply, Refused)
        assert reply.reason is Reason.DECISION_NOT_ALLOWED
        assert reply.metadata["allowed"].split(", ") == sorted(each.name for each in EXPECTED[cause, trigger])
        assert why_not(kind, cause, armed=record.armed) in reply.text
        after = host.machine.state.revision - 1, record.generation, record.state  # taking control is a change
        assert (*after, len(host.machine.state.audit.decisions)) == before
        return
    assert reply is record
    assert record.errno in (errno.ENOMEM, errno.EPERM)
    exit_state, vcpu_state = AFTER[kind]
    assert (record.state, host.vcpu(VCPU).state) == (exit_state, vcpu_state)
    assert (exit_state is ExitState.RESOLVED) == (not host.pending)
    assert RULES[kind].final <= (exit_state is ExitState.RESOLVED or kind is D.MIGRATE)  # which ends with the move


@pytest.mark.parametrize("kind", D)
def test_no_decision_while_one_is_applied_or_after_the_end(kind: DecisionKind) -> None:
    """A running delay has its winner; a settled exit has its end: both say whose."""
    host, record = exit_of(ExitCause.NO_MEMORY, "XSETBV")
    resolve(host, record, Decision(D.RETRY_AFTER, delay_ns=SECOND_NS))
    assert (record.state, allowed_decisions(record)) == (ExitState.APPLYING, frozenset())
    for _ in range(2):
        reply = resolve(host, record, decision(kind) if kind is not D.RETRY_AFTER else Decision(kind, delay_ns=7))
        assert isinstance(reply, Refused)
        assert reply.reason is Reason.EXIT_ALREADY_RESOLVED
        assert reply.metadata["decidedBy"] == "test"
    host, record = exit_of(ExitCause.NO_MEMORY, "XSETBV")
    resolve(host, record, Decision(D.KILL_VM))
    other = decision(kind) if kind is not D.KILL_VM else Decision(D.INJECT_GP)
    reply = resolve(host, record, other)
    assert isinstance(reply, Refused)
    assert (reply.reason, reply.metadata["decision"]) == (Reason.EXIT_ALREADY_RESOLVED, "KILL_VM")
    assert allowed_decisions(record) == frozenset()


@pytest.mark.parametrize("kind", DEFAULT_ACTIONS)
@pytest.mark.parametrize(("cause", "trigger"), list(EXPECTED))
def test_every_default_action_is_allowed_everywhere(cause: ExitCause, trigger: str, kind: DecisionKind) -> None:
    """A host that was told to do it does it at the deadline, whatever the exit."""
    host, record = exit_of(cause, trigger, exit_default=kind)
    host.now_ns = (host.machine.next_deadline_ns() or 0) - 1
    host.control()  # any command: what is due happens before it
    assert (record.decision, record.decided_by) == (kind, "deadline")
    assert (record.state, host.vcpu(VCPU).state) == AFTER[kind]


def test_the_docs_have_the_table() -> None:
    """docs/exits.md shows what the rules say, and every reason there is."""
    text = (Path(__file__).parent.parent / "docs" / "exits.md").read_text()
    assert decisions_table() in text
    assert refusals_table() in text
    assert set(RULES) == set(DecisionKind)
