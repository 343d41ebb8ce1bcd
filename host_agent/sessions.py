"""Sessions: who reports for which vCPU, in which order, and which outcomes are still to be received."""

from __future__ import annotations

from dataclasses import dataclass

from fpu_core.errors import CoreBug, FieldError
from host_agent.broken import break_vcpu
from host_agent.capabilities import capabilities
from host_agent.commands import AckDirective, CloseSession, KeepAlive, OpenSession, SubmitBatch
from host_agent.control import bounded_lease
from host_agent.directives import inherit_directives, leave_directives
from host_agent.effects import VcpusTaken
from host_agent.errors import Reason, Refused, invalid, limit_reached
from host_agent.events import (
    BlockedOutcome,
    Directive,
    GoneOutcome,
    GuestEvent,
    Init,
    Intercepts,
    Malformed,
    Outcome,
    RejectedOutcome,
)
from host_agent.guest_events import intercepts, run_event
from host_agent.kvm.lifecycle import VcpuState, WrongStateError
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import HostState, SessionRecord, VcpuSide
from host_agent.tasks import leave_guest


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a vCPU's reports go on: ``pending`` is the outcome of the event before, if that is not final.

    ``intercepts`` is what is intercepted now: it may have changed while nobody had the vCPU.
    """

    vcpu: str
    uid: str
    incarnation: int
    next_seq: int
    pending: Outcome | None
    intercepts: Intercepts


@dataclass(frozen=True, slots=True)
class Opened:
    """A session and where each of its vCPUs resumes."""

    session: SessionRecord
    vcpus: tuple[Resume, ...]


# -- life --------------------------------------------------------------------------------------------------------------


def open_session(state: HostState, command: OpenSession) -> Opened:
    """Take charge of vCPUs. The newest session of a vCPU has it; the older one is fenced off from that vCPU only."""
    if state.draining:
        raise Refused(Reason.HOST_DRAINING, "the host is draining and takes no new session")
    if len(state.sessions) >= state.config.max_sessions:
        raise limit_reached("sessions of the host", "sessions_max", state.config.max_sessions)
    missing = sorted(set(command.required_capabilities) - set(capabilities(state.config)))
    if missing:
        raise Refused(Reason.CAPABILITY_MISSING, f"this host lacks {', '.join(missing)}", capability=",".join(missing))
    if len(set(command.vcpus)) != len(command.vcpus) or not command.vcpus:
        raise invalid("vcpus", "one or more vCPU names, each once", ", ".join(command.vcpus))
    vcpus = {name: state.vcpu(name) for name in command.vcpus}
    lease_ns = bounded_lease(state, command.lease_ns)
    session = SessionRecord(
        id=state.next_id("s"),
        epoch=state.next_epoch(),
        client_name=command.client_name,
        principal=command.principal,
        lease_ns=lease_ns,
        expires_ns=state.now_ns + lease_ns,
        explicit=command.explicit,
    )
    state.sessions[session.name] = session
    state.deadlines.add(session)
    for name, vcpu in vcpus.items():
        _take_over(state, session, name, vcpu)
    state.effects.append(VcpusTaken(session.name, session.epoch, tuple(vcpus)))
    return Opened(session, tuple(resume(state, name, vcpu) for name, vcpu in vcpus.items()))


def _take_over(state: HostState, session: SessionRecord, name: str, vcpu: Vcpu) -> None:
    side = state.side(vcpu)
    if side.session is not None:
        side.session.vcpus.pop(name, None)
        leave_directives(side.session, name, side)
    elif state.ended_sessions.get(side.last_session):
        state.fenced_sessions[side.last_session] = session.epoch
    side.session = session
    side.last_session = session.name
    session.vcpus[name] = vcpu
    inherit_directives(session, side)


def resume(state: HostState, name: str, vcpu: Vcpu) -> Resume:
    """Where reports about a vCPU go on."""
    side = state.side(vcpu)
    last = side.outcomes.get(side.next_seq - 1)
    pending = last if last is not None and not last.final else None
    return Resume(name, side.uid, vcpu.incarnation, side.next_seq, pending, intercepts(vcpu))


def keep_alive(state: HostState, command: KeepAlive) -> int:
    """Start the lease anew; returns it in nanoseconds."""
    session = state.session(command.session, command.epoch)
    session.expires_ns = state.now_ns + session.lease_ns
    return session.lease_ns


def close_session(state: HostState, command: CloseSession) -> None:
    """End a session on its agent's word."""
    end_session(state, state.session(command.session, command.epoch), expired=False)


def end_session(state: HostState, session: SessionRecord, *, expired: bool) -> None:
    """Its vCPUs leave the guest and stay; nothing is destroyed, open exits stay open."""
    for name, vcpu in session.vcpus.items():
        side = state.side(vcpu)
        leave_directives(session, name, side)
        side.session = None
        if vcpu.state is VcpuState.ENTERED:
            leave_guest(state.vms[vcpu.vm.account.name], vcpu)
    del state.sessions[session.name]
    state.ended_sessions[session.name] = expired
    while len(state.ended_sessions) > state.config.max_sessions:
        forgotten = next(iter(state.ended_sessions))
        del state.ended_sessions[forgotten]
        state.fenced_sessions.pop(forgotten, None)


def ack_directive(state: HostState, command: AckDirective) -> None:
    """The agent carried a directive out; one that is not known was acknowledged before."""
    state.session(command.session, command.epoch).directives.pop(command.directive, None)


# -- events ------------------------------------------------------------------------------------------------------------


def submit(state: HostState, command: SubmitBatch) -> tuple[Outcome, ...]:
    """Apply events in order, not atomically: each has its own outcome, and a bad one does not hold up the others."""
    session = state.session(command.session, command.epoch)
    session.expires_ns = state.now_ns + session.lease_ns
    for name, seq in command.received:
        vcpu = session.vcpus.get(name)
        if vcpu is not None and not (state.leaving and vcpu.vm.account.name in state.leaving):
            _forget(state.side(vcpu), seq)
    return tuple([_one(state, session, event) for event in command.events])


def _forget(side: VcpuSide, through: int) -> None:
    """Outcomes the agent has received need not be kept; a pending one is not received yet, whatever it says."""
    for seq in [seq for seq, outcome in side.outcomes.items() if seq <= through and outcome.final]:
        del side.outcomes[seq]


def _one(state: HostState, session: SessionRecord, event: GuestEvent) -> Outcome:
    try:
        return _sequenced(state, session, event)
    except Refused as refused:
        return _rejected(event, refused)


def _sequenced(state: HostState, session: SessionRecord, event: GuestEvent) -> Outcome:
    """A repeated number gets its outcome again, a gap the expected number; else the event is taken."""
    vcpu = session.vcpus.get(event.vcpu)
    if vcpu is None:
        return _gone(state, session, event)
    side = state.side(vcpu)
    if event.seq < side.next_seq:
        return _repeated(side, event)
    if state.leaving:
        leaving = state.leaving.get(vcpu.vm.account.name)
        if leaving is not None:
            exit_name = side.exit.name if side.exit is not None else ""
            return Outcome(event.vcpu, event.seq, BlockedOutcome(side.next_seq, exit_name, leaving.name))
    if side.exit is not None and not isinstance(event.kind, Init):
        return Outcome(event.vcpu, event.seq, BlockedOutcome(side.next_seq, side.exit.name))
    if event.seq > side.next_seq:
        raise Refused(
            Reason.SEQ_GAP,
            f"{event.vcpu!r} expects number {side.next_seq}, got {event.seq}",
            vcpu=event.vcpu,
            expectedSeq=side.next_seq,
            seq=event.seq,
        )
    if len(side.outcomes) >= state.config.max_outcomes:
        what = f"outcomes of {event.vcpu!r} that nobody has received"
        raise limit_reached(what, "outcomes_per_vcpu_max", state.config.max_outcomes)
    return _take(state, session, vcpu, side, event)


def _take(state: HostState, session: SessionRecord, vcpu: Vcpu, side: VcpuSide, event: GuestEvent) -> Outcome:
    """Run the event: from here on its number is used, and its outcome is kept until it is received."""
    side.next_seq = event.seq + 1
    if isinstance(event.kind, Malformed):
        bad = event.kind
        outcome = Outcome(event.vcpu, event.seq, RejectedOutcome(bad.reason, bad.text, bad.field, dict(bad.metadata)))
        side.outcomes[event.seq] = outcome
        return outcome
    try:
        if vcpu.state is not VcpuState.ENTERED:
            _check_runnable(event.vcpu, vcpu)
        kind = run_event(state, vcpu, event.seq, event.kind, explicit=session.explicit)
        outcome = Outcome(event.vcpu, event.seq, kind)
    except Refused as refused:
        outcome = _rejected(event, refused)
    except FieldError as error:
        outcome = _rejected(event, invalid(error.field, error.expected, error.got))
    except WrongStateError as error:
        outcome = _rejected(event, Refused(Reason.VCPU_PARKED, str(error), vcpu=event.vcpu, exit=""))
    except CoreBug as bug:
        outcome = _rejected(event, break_vcpu(state, vcpu, bug))
    side.outcomes[event.seq] = outcome
    return outcome


def _check_runnable(name: str, vcpu: Vcpu) -> None:
    if vcpu.state is VcpuState.KILLED:
        raise Refused(Reason.VCPU_KILLED, f"{name!r} was killed", vcpu=name)
    if vcpu.state is VcpuState.BROKEN:
        raise Refused(Reason.VCPU_BROKEN, f"{name!r} met a bug of the host and was stopped", vcpu=name)


def _repeated(side: VcpuSide, event: GuestEvent) -> Outcome:
    found = side.outcomes.get(event.seq)
    if found is None:
        raise Refused(
            Reason.OUTCOME_FORGOTTEN,
            f"the outcome of number {event.seq} of {event.vcpu!r} was received and forgotten",
            vcpu=event.vcpu,
            seq=event.seq,
        )
    return found


def _gone(state: HostState, session: SessionRecord, event: GuestEvent) -> Outcome:
    """What a session hears of a vCPU that it does not have: where it is now, if it has gone with its VM."""
    moved = state.moved.get(event.vcpu.partition("/vcpus/")[0])
    if moved is None or moved.vm in state.vms:
        raise _not_in_session(state, session, event.vcpu)
    text = f"the VM lives at {moved.target} now"
    directive = Directive(moved.directive, event.vcpu, "MOVED", text, moved.target)
    return Outcome(event.vcpu, event.seq, GoneOutcome(directive))


def _not_in_session(state: HostState, session: SessionRecord, name: str) -> Refused:
    vcpu = state.vcpu(name)  # refuses a name that is nobody's
    side = vcpu.agent
    owner = side.session if isinstance(side, VcpuSide) else None
    if owner is None or owner.epoch < session.epoch:
        text = f"{name!r} is not one of {session.name!r}"
        return Refused(Reason.VCPU_NOT_IN_SESSION, text, vcpu=name, session=session.name)
    text = f"{name!r} has a newer session than {session.name!r}"
    return Refused(Reason.SESSION_FENCED, text, session=session.name, vcpu=name, currentEpoch=owner.epoch)


def _rejected(event: GuestEvent, refused: Refused) -> Outcome:
    kind = RejectedOutcome(refused.reason.name, refused.text, refused.field, refused.metadata)
    return Outcome(event.vcpu, event.seq, kind)


def find_outcome(state: HostState, session: str, epoch: int, vcpu: str, seq: int) -> Outcome:
    """The outcome of an event, pending or final; refuses numbers that were never sent or whose outcome is forgotten."""
    found = state.session(session, epoch).vcpus.get(vcpu)
    if found is None:
        raise _not_in_session(state, state.session(session, epoch), vcpu)
    side = state.side(found)
    if not 1 <= seq < side.next_seq:
        raise invalid("seq", f"1..{side.next_seq - 1}, the numbers taken so far", seq)
    outcome = side.outcomes.get(seq)
    if outcome is None:
        raise Refused(
            Reason.OUTCOME_FORGOTTEN,
            f"the outcome of number {seq} of {vcpu!r} was received and forgotten",
            vcpu=vcpu,
            seq=seq,
        )
    return outcome
