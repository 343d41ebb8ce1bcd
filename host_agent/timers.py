"""What time does by itself: leases run out, delays end, deadlines pass. In one fixed order, so that a log replays."""

from __future__ import annotations

from host_agent import migrating
from host_agent.decisions import deadline_passed, delay_passed
from host_agent.exits import ExitRecord, ExitState
from host_agent.faults import expire
from host_agent.sessions import end_session
from host_agent.state import HostState


def next_deadline_ns(state: HostState) -> int | None:
    """The earliest moment at which something is due; None where nothing ever is."""
    return state.deadlines.first_ns()


def due(state: HostState) -> bool:
    """Let everything that is due happen: sessions, controls, faults, migrations, exits, each in the order it was made.

    Returns whether anything was.
    """
    now_ns = state.now_ns
    if not state.deadlines.may_be_due(now_ns):
        return False
    first = next_deadline_ns(state)
    if first is None or first > now_ns:
        return False
    state.acting_command = "Tick"  # whatever command brought the time along
    for session in [each for each in state.sessions.values() if each.expires_ns <= now_ns]:
        end_session(state, session, expired=True)
    for control in [each for each in state.controls.values() if each.expires_ns <= now_ns]:
        del state.controls[control.name]
    expire(state)
    for migration in list(state.leaving.values()):
        if migration.deadline_ns is not None and migration.deadline_ns <= now_ns:
            migrating.deadline_passed(state, migration)
    for record in list(state.exits.values()):
        if record.vm not in state.leaving:  # else its clock stands
            _exit_due(state, record)
    return True


def _exit_due(state: HostState, record: ExitRecord) -> None:
    if record.retry_ns is not None and record.retry_ns <= state.now_ns:
        delay_passed(state, record)
    elif record.state is ExitState.OPEN and record.expires_ns is not None and record.expires_ns <= state.now_ns:
        deadline_passed(state, record)
