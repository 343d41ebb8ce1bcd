"""Telling a VMM what only it can do, and giving an event its final outcome."""

from __future__ import annotations

from host_agent.effects import DirectiveIssued, OutcomeReady
from host_agent.events import Directive, GoneOutcome, Outcome, OutcomeKind, PendingOutcome
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import HostState, VcpuSide


def issue_directive(state: HostState, vcpu: Vcpu, kind: str, reason: str) -> Directive:
    """Make a directive for ``vcpu`` and keep it with its session until it is acknowledged."""
    state.serial += 1
    directive = Directive(state.serial, state.vcpu_name(vcpu), kind, reason)
    side = vcpu.agent
    session = side.session if isinstance(side, VcpuSide) else None
    if session is not None:
        session.directives[directive.id] = directive
        state.effects.append(DirectiveIssued(session.name, directive))
    return directive


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
