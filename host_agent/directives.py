"""Telling a VMM what only it can do, and giving an event its final outcome."""

from __future__ import annotations

from host_agent.effects import DirectiveIssued, OutcomeReady
from host_agent.events import Directive, GoneOutcome, Outcome, OutcomeKind, PendingOutcome
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import HostState, SessionRecord, VcpuSide


def issue_directive(state: HostState, vcpu: Vcpu, kind: str, reason: str, target: str = "") -> Directive:
    """Make a directive for ``vcpu`` and keep it with its session until it is acknowledged. ``target`` is of MOVED.

    Where there is no session it waits for the next one. A vCPU that nobody ever had a session for has no VMM to tell.
    """
    state.serial += 1
    directive = Directive(state.serial, state.vcpu_name(vcpu), kind, reason, target)
    side = vcpu.agent
    if not isinstance(side, VcpuSide):
        return directive
    kept = side.directives if side.session is None else side.session.directives
    _supersede(kept, directive)
    kept[directive.id] = directive
    if side.session is not None:
        state.effects.append(DirectiveIssued(side.session.name, directive))
    else:
        _drop_resets(kept)
    return directive


def _supersede(kept: dict[int, Directive], by: Directive) -> None:
    """Drop what counts no more: of PAUSE and RESUME the latest does, and STOP and RESET end all that went before."""
    ended = ("PAUSE", "RESUME") if by.kind in ("PAUSE", "RESUME") else ("PAUSE", "RESUME", "STOP", "RESET")
    for earlier in [each for each in kept.values() if each.vcpu == by.vcpu and each.kind in ended]:
        del kept[earlier.id]


def _drop_resets(kept: dict[int, Directive]) -> None:
    """A RESET is for the VMM that was there: a session that comes later begins with the vCPU as it is by then."""
    for each in [each for each in kept.values() if each.kind == "RESET"]:
        del kept[each.id]


def leave_directives(session: SessionRecord, name: str, side: VcpuSide) -> None:
    """The session has ``name`` no more: what it did not acknowledge waits with the vCPU for the next one."""
    for directive in [each for each in session.directives.values() if each.vcpu == name]:
        side.directives[directive.id] = session.directives.pop(directive.id)
    _drop_resets(side.directives)


def inherit_directives(session: SessionRecord, side: VcpuSide) -> None:
    """The session has the vCPU from now on, and hears what nobody has acknowledged."""
    session.directives |= side.directives
    side.directives.clear()


def finish_pending(state: HostState, vcpu: Vcpu, kind: OutcomeKind) -> None:
    """Replace the pending outcome of ``vcpu`` by its final one and make it known; nothing to do if none is pending."""
    side = state.side(vcpu)
    # The newest number, or the one before it: INIT takes a number although an event is pending.
    for seq in (side.next_seq - 1, side.next_seq - 2):
        pending = side.outcomes.get(seq)
        if pending is not None and isinstance(pending.kind, PendingOutcome):
            outcome = Outcome(pending.vcpu, seq, kind)
            side.outcomes[seq] = outcome
            state.effects.append(OutcomeReady(outcome))
            return


def gone(directive: Directive) -> GoneOutcome:
    """The final outcome of an event whose vCPU is not there any more to have one."""
    return GoneOutcome(directive)
