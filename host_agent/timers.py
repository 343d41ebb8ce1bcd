"""What time does by itself: leases run out, delays end, deadlines pass. In one fixed order, so that a log replays."""

from __future__ import annotations

from host_agent.decisions import deadline_passed, delay_passed
from host_agent.exits import ExitState
from host_agent.sessions import end_session
from host_agent.state import HostState


def next_deadline_ns(state: HostState) -> int | None:
    """The earliest moment at which something is due; None where nothing ever is."""
    return state.deadlines.first_ns()


def due(state: HostState) -> bool:
    """Let everything that is due happen: sessions first, then controls, then exits, each in the order it was made.

    Returns whether anything was.
    """
    now_ns = state.now_ns
    if not state.deadlines.may_be_due(now_ns):
        return False
    first = next_deadline_ns(state)
    if first is None or first > now_ns:
        return False
    for session in [each for each in state.sessions.values() if each.expires_ns <= now_ns]:
        end_session(state, session, expired=True)
    for control in [each for each in state.controls.values() if each.expires_ns <= now_ns]:
        del state.controls[control.name]
    for record in list(state.exits.values()):
        if record.retry_ns is not None and record.retry_ns <= now_ns:
            delay_passed(state, record)
        elif record.state is ExitState.OPEN and record.expires_ns is not None and record.expires_ns <= now_ns:
            deadline_passed(state, record)
    return True
