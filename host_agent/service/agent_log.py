"""What a host does, in its log: sessions, faults, exits and decisions, with the trace of the event that led to each.

No register content: what is logged is names, numbers and reasons.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fpstated.link.trace import EVENT_TRACEPARENT, TraceContext, current_trace
from host_agent import commands as c
from host_agent.effects import Drained, Effect, ExitChanged, FaultChanged, MigrationChanged, VcpusTaken
from host_agent.exits import ExitRecord
from host_agent.service.access.principal import current_principal
from host_agent.service.fault_log import FaultLog
from host_agent.service.trace_layer import current_call

if TYPE_CHECKING:
    from host_agent.service.agent import HostAgent

_log = logging.getLogger("fpstated.host")


class AgentLog:
    """Listens to an agent. Remembers the trace of each exit until that is settled."""

    def __init__(self, agent: HostAgent) -> None:
        self._agent = agent
        self._traces: dict[str, TraceContext] = {}
        self._sessions = set(agent.state.sessions)
        self._faults = FaultLog()

    def heard(self, command: c.Command, effects: list[Effect]) -> None:
        """Log what became known."""
        for effect in effects:
            match effect:
                case VcpusTaken(session, epoch, vcpus):
                    self._sessions.add(session)
                    extra = {"session": session, "epoch": epoch, "vcpus": len(vcpus)}
                    _log.info("session %s opened", session, extra=extra | _who())
                case Drained():
                    _log.info("draining: nothing new is taken", extra=_who())
                case FaultChanged():
                    self._faults.changed(effect)
                case MigrationChanged(name):
                    self._migration(name)
                case ExitChanged():
                    pass  # each exit once, below
                case _:
                    pass
        for name in dict.fromkeys(effect.exit for effect in effects if isinstance(effect, ExitChanged)):
            record = self._agent.exit_record(name)
            if record is not None:
                self._exit(command, record)
        if len(self._agent.state.sessions) < len(self._sessions):
            self._ended_sessions()

    def rolled_back(self) -> None:
        """Go on from the sessions and exits that there are. An exit that is open again is without a trace."""
        state = self._agent.state
        self._sessions = set(state.sessions)
        self._traces = {name: trace for name, trace in self._traces.items() if name in state.exits}

    def _migration(self, name: str) -> None:
        record = self._agent.state.migrations.get(name)
        if record is None:
            return
        extra = {
            "vm": record.vm,
            "migration": name,
            "role": record.role.name,
            "state": record.state.name,
            "target": record.target,
            "ownership_epoch": record.ownership_epoch,
            "reason": record.reason,
        }
        why = f": {record.reason}" if record.reason else ""
        _log.info("migration %s %s as %s%s", name, record.state.name, record.role.name, why, extra=extra | _who())

    def _ended_sessions(self) -> None:
        """Closed by its agent, or by the end of its lease."""
        state = self._agent.state
        for session in sorted(self._sessions - state.sessions.keys()):
            self._sessions.discard(session)
            word = "expired" if state.ended_sessions.get(session) else "closed"
            _log.info("session %s %s", session, word, extra={"session": session} | _who())

    def _exit(self, command: c.Command, record: ExitRecord) -> None:
        trace = current_trace()
        if record.name not in self._traces and trace is not None and not isinstance(command, c.ResolveExit):
            self._traces[record.name] = trace
        event = self._traces.get(record.name)
        decided = record.decision.name if record.decision is not None else ""
        extra = {
            "vm": record.vm,
            "vcpu": record.vcpu,
            "exit": record.name,
            "state": record.state.name,
            "cause": record.cause.name,
            "attempt": record.attempt,
            "generation": record.generation,
            "decision": decided,
            "decided_by": record.decided_by,
            "result": record.result.name if record.result is not None else "",
            "event_trace_id": event.trace_id if event is not None else "",
        }
        words = f"exit {record.name} {record.state.name}: {record.cause.name}, attempt {record.attempt}"
        _log.info("%s%s", words, f", {decided} by {record.decided_by}" if decided else "", extra=extra | _who())
        if isinstance(command, c.ResolveExit) and event is not None:
            _tell_the_decider(event)
        if not record.open:
            self._traces.pop(record.name, None)


def _who() -> dict[str, str]:
    return {"principal": current_principal.get().id}


def _tell_the_decider(event: TraceContext) -> None:
    """The answer of ResolveExit says which trace the event is of, so that the controller's log can name it too."""
    call = current_call.get()
    if call is not None and call[0].name == "ResolveExit":
        call[1].set_trailing_metadata(((EVENT_TRACEPARENT, event.header),))
