"""Exits: what opens one, what each decision does, who may decide, and that every event ends exactly once."""

from __future__ import annotations

import pytest

from fault_lab.injection.action import FailErrno
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.hit import Selector
from fpu_core.alloc import POINT_REALLOC_ALLOC
from fpu_core.xfeature import MSR_IA32_XFD
from host_agent.commands import (
    AcquireControl,
    ArmFault,
    CloseSession,
    CreateVcpu,
    CreateVm,
    DeleteVcpu,
    DeleteVm,
    ReleaseControl,
    RequestPermission,
    ResetVm,
    ResolveExit,
    SetCpuid,
    SubmitBatch,
    Tick,
    UpdateVm,
)
from host_agent.errors import Reason, Refused
from host_agent.events import (
    BlockedOutcome,
    DoneOutcome,
    GoneOutcome,
    GuestEvent,
    Hlt,
    Init,
    InjectOutcome,
    Nm,
    Outcome,
    PendingOutcome,
    Rdmsr,
    RejectedOutcome,
    Wrmsr,
    Xsetbv,
)
from host_agent.exits import Decision, DecisionKind, ExitCause, ExitRecord, ExitState
from host_agent.kvm.lifecycle import VcpuState
from tests.core.host import SECOND_NS, Host, host_config

VM = "vms/a"
VCPU = f"{VM}/vcpus/0"
AMX = 0x602E7
TILE_DATA = 1 << 18


def _host(*, permitted: bool = True, limit: int | None = None, times: int = -1) -> Host:
    """A VM with one vCPU; growth fails as often as ``times`` says."""
    host = Host(host_config(exit_deadline_ns=10 * SECOND_NS))
    host.apply(CreateVm(vm_id="a", byte_limit=limit))
    if permitted:
        host.apply(RequestPermission(vm=VM, feature=18, guest=True))
    host.apply(CreateVcpu(vm=VM, index=0))
    if times:
        attributes = FaultAttributes(times=times)
        host.apply(
            ArmFault(point=POINT_REALLOC_ALLOC, action=FailErrno(12), selector=Selector(vm=VM), attributes=attributes)
        )
    return host


def _parked(host: Host, *, by: str = "XSETBV") -> ExitRecord:
    """Let the guest ask for tiles; the exit it is parked on."""
    if by == "XSETBV":
        outcome = host.event(VCPU, Xsetbv(0, AMX))
    else:
        host.events(VCPU, Wrmsr(MSR_IA32_XFD, TILE_DATA), Xsetbv(0, AMX))
        outcome = host.event(VCPU, Wrmsr(MSR_IA32_XFD, 0))
    assert isinstance(outcome.kind, PendingOutcome)
    return host.machine.state.exits[outcome.kind.exit]


def _decide(host: Host, record: ExitRecord, kind: DecisionKind, **how: object) -> None:
    """Take control and decide the exit as it is now."""
    name, epoch = host.control()
    decision = Decision(kind, **how)  # type: ignore[arg-type]
    host.apply(
        ResolveExit(
            exit=record.name, generation=record.generation, control=name, control_epoch=epoch, decision=decision
        )
    )


def _final(host: Host, record: ExitRecord) -> Outcome:
    """The one final outcome of the event that was pending."""
    assert host.finals[record.vcpu, record.seq] == 1
    return host.outcomes[record.vcpu, record.seq]


# -- opening -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("permitted", "limit", "times", "cause", "errno"),
    [
        pytest.param(True, None, -1, ExitCause.NO_MEMORY, 12, id="no memory: ENOMEM"),
        pytest.param(True, 9_000, 0, ExitCause.QUOTA, 12, id="over the VM's byte limit: ENOMEM"),
        pytest.param(False, None, 0, ExitCause.NO_PERMISSION, 1, id="no permission: EPERM"),
    ],
)
def test_exit(permitted: bool, limit: int | None, times: int, cause: ExitCause, errno: int) -> None:
    """The exit says why, what was asked for and what was there; the vCPU is parked and nothing was committed."""
    host = _host(permitted=permitted, limit=limit, times=times)
    record = _parked(host)
    assert (record.name, record.state, record.generation, record.attempt) == (f"{VCPU}/exits/1", ExitState.OPEN, 1, 1)
    assert (record.cause, record.errno, record.bytes_needed, record.xfeatures) == (cause, errno, 10_816, TILE_DATA)
    assert (record.old_xcr0, record.old_xfd, record.write.xcr0, record.write.xfd) == (1, 0, AMX, 0)
    vcpu = host.vcpu(VCPU)
    assert (vcpu.state, vcpu.xcr0, vcpu.fpstate.size) == (VcpuState.PARKED, 1, 2560)


def test_events_behind_a_pending_one_are_blocked() -> None:
    """They are not taken, use no number, and hear what blocks them; the pending one is answered as pending again."""
    host = _host()
    record = _parked(host)
    outcome = host.event(VCPU, Hlt())
    assert outcome.kind == BlockedOutcome(expected_seq=2, exit=record.name)
    assert host.side(VCPU).next_seq == 2
    session = host.session_of(VCPU)
    assert session is not None
    again = GuestEvent(VCPU, 1, Xsetbv(0, AMX))
    (repeated,) = host.apply(SubmitBatch(session=session.name, epoch=session.epoch, events=(again,)))
    assert repeated.kind == PendingOutcome(record.name, 1)


def test_parked_vcpu_takes_no_new_cpuid() -> None:
    """While a vCPU is parked, setting its CPUID is refused with KVM's errno."""
    host = _host()
    _parked(host)
    refused = host.tried(SetCpuid(vm=VM, xcr0_mask=0x2E7))
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.metadata["errnoName"]) == (Reason.KVM_ERRNO, "EINVAL")
    assert host.vcpu(VCPU).guest_supported_xcr0 == AMX


# -- decisions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["XSETBV", "WRMSR XFD"])
def test_retry(by: str) -> None:
    """The instruction executes again and grows: XCR0 and XFD are committed, and the guest goes on behind it."""
    host = _host(times=1)
    record = _parked(host, by=by)
    _decide(host, record, DecisionKind.RETRY)
    kind = _final(host, record).kind
    assert isinstance(kind, DoneOutcome)
    assert kind.skip_instruction
    assert kind.reallocated is not None
    assert (kind.reallocated.old_bytes, kind.reallocated.new_bytes) == (2560, 10752)
    vcpu = host.vcpu(VCPU)
    assert (vcpu.state, vcpu.xcr0, vcpu.fpstate.xfd) == (VcpuState.ENTERED, AMX, 0)
    assert record.state is ExitState.RESOLVED


def test_retry_that_fails_again() -> None:
    """The exit stays open with the next generation and one attempt more; the event is still pending."""
    host = _host(times=2)
    record = _parked(host)
    _decide(host, record, DecisionKind.RETRY)
    assert (record.state, record.generation, record.attempt) == (ExitState.OPEN, 2, 2)
    assert host.outcomes[VCPU, 1].kind == PendingOutcome(record.name, 2)
    _decide(host, record, DecisionKind.RETRY)
    assert record.state is ExitState.RESOLVED
    assert isinstance(_final(host, record).kind, DoneOutcome)


def test_retry_after() -> None:
    """The retry happens by itself when the delay is over, and not a nanosecond earlier."""
    host = _host(times=1)
    record = _parked(host)
    _decide(host, record, DecisionKind.RETRY_AFTER, delay_ns=SECOND_NS)
    assert record.state is ExitState.APPLYING
    due = host.machine.next_deadline_ns()
    assert due == host.now_ns + SECOND_NS
    host.apply(Tick(), after_ns=SECOND_NS - 1)
    assert host.pending == {(VCPU, 1)}
    host.apply(Tick(), after_ns=1)
    assert not host.pending
    assert isinstance(_final(host, record).kind, DoneOutcome)


def test_raise_limit() -> None:
    """The VM's limit goes up and the instruction executes again."""
    host = _host(limit=9_000, times=0)
    record = _parked(host)
    _decide(host, record, DecisionKind.RAISE_LIMIT, bytes=20_000)
    assert host.machine.state.vms[VM].kvm.account.limit_bytes == 20_000
    assert isinstance(_final(host, record).kind, DoneOutcome)


def test_inject_gp() -> None:
    """The guest takes #GP(0) at the instruction; XCR0 is as it was, and the guest goes on."""
    host = _host()
    record = _parked(host)
    _decide(host, record, DecisionKind.INJECT_GP)
    assert _final(host, record).kind == InjectOutcome(13, 0, 0)
    vcpu = host.vcpu(VCPU)
    assert (vcpu.state, vcpu.xcr0, vcpu.fpstate.size) == (VcpuState.ENTERED, 1, 2560)


def test_defer() -> None:
    """A WRMSR of XFD is skipped without effect: the feature stays armed, and its next use is #NM again."""
    host = _host()
    record = _parked(host, by="WRMSR XFD")
    _decide(host, record, DecisionKind.DEFER)
    kind = _final(host, record).kind
    assert isinstance(kind, DoneOutcome)
    assert kind.skip_instruction
    assert host.vcpu(VCPU).fpstate.xfd == TILE_DATA
    nm = host.event(VCPU, Nm()).kind
    assert isinstance(nm, InjectOutcome)
    assert nm.xfd_err == TILE_DATA


def test_defer_is_not_for_xsetbv() -> None:
    """XSETBV cannot be skipped as if it had happened: the decision is refused, and says what is allowed."""
    host = _host()
    record = _parked(host)
    with pytest.raises(Refused, match="DEFER is not for NO_MEMORY on XSETBV"):
        _decide(host, record, DecisionKind.DEFER)
    assert record.state is ExitState.OPEN


def test_pause_and_then_anything() -> None:
    """A paused vCPU waits without a deadline; a later decision takes it on."""
    host = _host(times=1)
    record = _parked(host)
    _decide(host, record, DecisionKind.PAUSE)
    assert (record.state, record.generation, record.expires_ns) == (ExitState.PAUSED, 2, None)
    assert host.vcpu(VCPU).state is VcpuState.PAUSED
    _decide(host, record, DecisionKind.RETRY)
    assert record.state is ExitState.RESOLVED


def test_deadline_pauses_and_never_guesses() -> None:
    """Nobody decides: after the deadline the vCPU is paused, and a decision of that generation comes too late."""
    host = _host()
    record = _parked(host)
    host.apply(Tick(), after_ns=10 * SECOND_NS)
    assert (record.state, record.decided_by, record.generation) == (ExitState.PAUSED, "deadline", 2)
    name, epoch = host.control()
    late = ResolveExit(
        exit=record.name, generation=1, control=name, control_epoch=epoch, decision=Decision(DecisionKind.RETRY)
    )
    refused = host.tried(late)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.EXIT_ALREADY_RESOLVED
    assert refused.metadata["decidedBy"] == "deadline"


@pytest.mark.parametrize("kind", [DecisionKind.KILL_VCPU, DecisionKind.KILL_VM, DecisionKind.RESET_VM])
def test_decision_that_ends_the_event(kind: DecisionKind) -> None:
    """KILL and RESET: the event is gone, once, with the directive; another parked vCPU of the VM goes with the VM."""
    host = _host()
    other = f"{VM}/vcpus/1"
    host.apply(CreateVcpu(vm=VM, index=1))
    record = _parked(host)
    second = host.event(other, Xsetbv(0, AMX))
    assert isinstance(second.kind, PendingOutcome)
    _decide(host, record, kind)
    final = _final(host, record).kind
    assert isinstance(final, GoneOutcome)
    assert final.directive.kind == ("RESET" if kind is DecisionKind.RESET_VM else "STOP")
    if kind is DecisionKind.KILL_VCPU:
        assert host.pending == {(other, 1)}
    else:
        assert not host.pending
        assert isinstance(host.outcomes[other, 1].kind, GoneOutcome)
    state = VcpuState.OUTSIDE if kind is DecisionKind.RESET_VM else VcpuState.KILLED
    assert host.vcpu(VCPU).state is state
    if state is VcpuState.KILLED:
        rejected = host.event(VCPU, Hlt()).kind
        assert isinstance(rejected, RejectedOutcome)
        assert rejected.reason == "VCPU_KILLED"


@pytest.mark.parametrize("how", ["INIT", "RESET", "delete the vCPU", "delete the VM"])
def test_what_else_ends_a_pending_event(how: str) -> None:
    """INIT, RESET and removal cancel the exit: its event is gone, exactly once, and the exit says cancelled."""
    host = _host()
    record = _parked(host)
    match how:
        case "INIT":
            assert isinstance(host.event(VCPU, Init()).kind, DoneOutcome)
        case "RESET":
            host.apply(ResetVm(vm=VM))
        case "delete the vCPU":
            host.apply(DeleteVcpu(vcpu=VCPU))
        case _:
            host.apply(DeleteVm(vm=VM, force=True))
    assert isinstance(_final(host, record).kind, GoneOutcome)
    assert not host.pending
    assert record.state is ExitState.CANCELLED
    assert not host.machine.state.exits


def test_init_keeps_xcr0_and_goes_on() -> None:
    """After INIT the vCPU is not parked any more: XCR0 is what it was, and the next event is taken."""
    host = _host()
    host.event(VCPU, Xsetbv(0, 0x7))
    _parked(host)
    host.event(VCPU, Init())
    assert (host.vcpu(VCPU).state, host.vcpu(VCPU).xcr0) == (VcpuState.OUTSIDE, 0x7)
    assert isinstance(host.event(VCPU, Rdmsr(MSR_IA32_XFD)).kind, DoneOutcome)


def test_exit_outlives_the_session() -> None:
    """The agent goes away: the exit stays open, is decided, and the next session hears the outcome."""
    host = _host(times=1)
    record = _parked(host)
    session = host.session_of(VCPU)
    assert session is not None
    host.apply(CloseSession(session=session.name, epoch=session.epoch))
    _decide(host, record, DecisionKind.RETRY)
    new = host.session(VCPU)
    again = GuestEvent(VCPU, 1, Xsetbv(0, AMX))
    (outcome,) = host.apply(SubmitBatch(session=new.name, epoch=new.epoch, events=(again,)))
    assert outcome == _final(host, record)


# -- who may decide ----------------------------------------------------------------------------------------------------


def test_compare_and_swap() -> None:
    """The first decision of a generation wins; the same again is answered, a different one hears who won."""
    host = _host(times=1)
    record = _parked(host)
    name, epoch = host.control()
    first = ResolveExit(
        exit=record.name, generation=1, control=name, control_epoch=epoch, decision=Decision(DecisionKind.RETRY)
    )
    assert host.apply(first) is record
    assert host.apply(first) is record
    assert host.finals[VCPU, 1] == 1
    other = ResolveExit(
        exit=record.name, generation=1, control=name, control_epoch=epoch, decision=Decision(DecisionKind.INJECT_GP)
    )
    refused = host.tried(other)
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.metadata["decision"]) == (Reason.EXIT_ALREADY_RESOLVED, "RETRY")
    assert refused.metadata["decidedBy"] == "test"


def test_stale_generation_and_unknown_exit() -> None:
    """A generation that is not there yet, and an exit that never was."""
    host = _host()
    record = _parked(host)
    name, epoch = host.control()
    for exit_name, reason in ((record.name, Reason.EXIT_STALE_GENERATION), ("nobody", Reason.EXIT_NOT_FOUND)):
        command = ResolveExit(
            exit=exit_name, generation=7, control=name, control_epoch=epoch, decision=Decision(DecisionKind.RETRY)
        )
        refused = host.tried(command)
        assert isinstance(refused, Refused)
        assert refused.reason is reason


def test_a_vms_controller_wins_over_the_hosts() -> None:
    """While a VM has a controller of its own, the host's may not decide there; afterwards it may again."""
    host = _host(times=1)
    record = _parked(host)
    general = host.control()
    own = host.apply(AcquireControl(scope=VM, controller="own"))

    def decide(control: tuple[str, int]) -> object:
        command = ResolveExit(
            exit=record.name,
            generation=record.generation,
            control=control[0],
            control_epoch=control[1],
            decision=Decision(DecisionKind.RETRY),
        )
        return host.tried(command)

    refused = decide(general)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.CONTROL_OUT_OF_SCOPE
    host.apply(ReleaseControl(control=own.name, epoch=own.epoch))
    assert decide((own.name, own.epoch)).reason is Reason.CONTROL_FENCED  # type: ignore[attr-defined]
    assert decide(general) is record


def test_freeing_memory_by_hand_and_retrying() -> None:
    """An operator raises the VM's limit with UpdateVm; the controller's next RETRY finds the room."""
    host = _host(limit=9_000, times=0)
    record = _parked(host)
    host.apply(UpdateVm(vm=VM, fields=("byte_limit",), byte_limit=None))
    _decide(host, record, DecisionKind.RETRY)
    assert isinstance(_final(host, record).kind, DoneOutcome)
