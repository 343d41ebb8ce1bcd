"""HostAgent: the machine with a clock and with listeners. Every service submits its commands here.

    submit(command)     apply it, queue its record, deliver what became known, look when something is due next

What is delivered here stays in the process; ``service.release`` stands where things leave it, and waits for the disk.

The machine is synchronous, so a command is applied whole before anything else happens on the loop: an agent belongs to
one event loop, and its methods are called on that loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from fpu_core.errors import CoreBug
from fpu_core.trace import CoreTracer
from host_agent.commands import AcquireControl, Boot, Command, OpenSession, Tick
from host_agent.effects import (
    DirectiveIssued,
    Drained,
    Effect,
    ExitChanged,
    FaultChanged,
    MigrationChanged,
    OutcomeReady,
    VcpusTaken,
)
from host_agent.errors import Reason, Refused
from host_agent.exits import ExitRecord
from host_agent.journal.durable import DurableJournal
from host_agent.journal.errors import JournalError, StorageFullError
from host_agent.journal.journal import Journal, NoJournal
from host_agent.machine import HostMachine
from host_agent.service.attachments import Attachments, Outlet
from host_agent.service.clock import Clock, MonotonicClock, SkewedClock, Timer
from host_agent.service.credits import session_credits
from host_agent.service.errors import Failure, failure_of
from host_agent.service.exit_watch import ExitNews, ExitWatchers
from host_agent.service.outcome_waits import OutcomeWaits
from host_agent.service.translate.exit import exit_to_proto
from host_agent.service.watch.history import Before, History
from host_agent.state import HostConfig, HostState, VcpuSide

_log = logging.getLogger(__name__)


class Listener(Protocol):
    """Hears what happens and changes nothing. Nothing may come out of it: it is called where a command is answered."""

    def heard(self, command: Command, effects: list[Effect]) -> None:
        """A command was applied, or refused; this is what it made known."""

    def rolled_back(self) -> None:
        """The disk was full: the agent's state is what is durable, and what was heard since has not happened."""


class HostAgent:
    """One host, alive: ``machine`` is what it knows, ``clock`` is its time, ``journal`` is where it is written down.

    With a ``DurableJournal`` the machine is the one in it, and ``start`` is called before the first command.
    """

    def __init__(
        self,
        config: HostConfig,
        *,
        clock: Clock | None = None,
        tracer: CoreTracer | None = None,
        journal: DurableJournal | None = None,
    ) -> None:
        self.clock: Clock = clock or (SkewedClock() if config.faults else MonotonicClock())
        config = replace(config, unix_offset_ns=self.clock.unix_ns() - self.clock.now_ns())
        self.machine = journal.machine if journal is not None else HostMachine(config, tracer=tracer)
        self.journal: Journal = journal if journal is not None else NoJournal()
        #: Set when the agent must stop: its journal cannot be written.
        self.failed = asyncio.Event()
        self._config = config
        self._offset_ns = self.state.now_ns - self.clock.now_ns() if journal is not None else 0
        self.outcomes = OutcomeWaits()
        self.attachments = Attachments()
        self.exit_watchers = ExitWatchers()
        #: What changed lately, while somebody wants to know.
        self.history = History(self.state, self.clock)
        #: Who hears of every command that was applied, with what it made known: metrics and the log.
        self.listeners: list[Listener] = []
        self._timer: Timer | None = None
        self._alive_sessions = 0
        self._booted = 0

    def start(self) -> None:
        """Take the history of the journal up, on the running loop. Raises ``Refused`` for settings it cannot have."""
        if not isinstance(self.journal, DurableJournal):
            return
        self.journal.on_rolled_back = self._rolled_back
        self.journal.on_room = self._room_again
        self.journal.on_failed = self._failed
        self.journal.start()
        self._boot(self.journal)
        self._set_timer()

    def _boot(self, journal: DurableJournal) -> None:
        """The history goes on in this process, as soon as that is on the disk: ``_booted`` is its record's number."""
        unix_offset_ns = self._config.unix_offset_ns - self._offset_ns
        self.submit(Boot(config=replace(self._config, boot_id=journal.boot_id, unix_offset_ns=unix_offset_ns)))
        self._booted = journal.applied

    def now_ns(self) -> int:
        """The time of this host: it stands still while no process has taken its history up, or its disk is full."""
        return self.clock.now_ns() + self._offset_ns

    @property
    def state(self) -> HostState:
        """What the machine knows, to be read."""
        return self.machine.state

    def submit(self, command: Command, then: Callable[[Any], None] | None = None) -> Any:  # noqa: ANN401
        """Apply ``command`` now and return its reply; raises ``Refused``, after which nothing has changed but time.

        ``then`` gets the reply before anything else that became known goes out: who hands on outcomes hands on a
        pending one before its final one, even where one batch brought both. Raises ``JournalError`` where nothing can
        be written down, and then the command was not applied.
        """
        self.journal.admit()
        before = self.history.before(command, self.now_ns()) if self.history.on else None
        try:
            reply = self._applied(command)
            if then is not None:
                then(reply)
        finally:
            self._after(command, before)
        return reply

    def _applied(self, command: Command) -> Any:  # noqa: ANN401
        """Apply a command and queue its record, whatever came of it."""
        try:
            reply = self.machine.apply(command, self.now_ns())
        except Exception as error:
            self.journal.append(self.state, command, error)
            raise
        self.journal.append(self.state, command, reply)
        return reply

    def answered(self, request_id: str) -> bool:
        """Whether a command with this request id was carried out before, so that its answer stands whatever is now."""
        return bool(request_id) and request_id in self.state.requests

    def close(self) -> None:
        """Be called by the clock no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        """No more commands: close the journal."""
        self.close()
        self.journal.close(self.state)  # twice is fine

    def exit_record(self, name: str) -> ExitRecord | None:
        """An exit by its name, open or still remembered."""
        return self.state.exits.get(name) or self.state.resolved_exits.get(name)

    # -- what a command makes known ------------------------------------------------------------------------------------

    def _after(self, command: Command, before: Before | None) -> None:
        effects = self.machine.take_effects()
        if before is not None:
            self.history.after(before, effects)
        for effect in effects:
            self._deliver(effect)
        self._deliver_exits(effects)
        for listener in self.listeners:
            listener.heard(command, effects)
        self._end_sessions(opened=isinstance(command, OpenSession))
        # Everything else moves deadlines later or takes them away, which a timer that comes too early finds out.
        sets_deadline = isinstance(command, OpenSession | AcquireControl | Tick)
        due = ExitChanged | FaultChanged | MigrationChanged
        if sets_deadline or any(isinstance(effect, due) for effect in effects):
            self._set_timer()

    def _deliver(self, effect: Effect) -> None:
        match effect:
            case OutcomeReady(outcome):
                self.outcomes.deliver(outcome)
                outlet = self._outlet(outcome.vcpu)
                if outlet is not None:
                    outlet.push(outcome)
            case DirectiveIssued(session, directive):
                outlet = self.attachments.outlet(directive.vcpu)
                if outlet is not None and outlet.session == session:
                    outlet.push(directive)
            case VcpusTaken(session, epoch, vcpus):
                self.outcomes.taken_over(session, vcpus, lambda older, vcpu: _fenced(older, vcpu, epoch))
            case ExitChanged() | Drained() | FaultChanged() | MigrationChanged():
                pass  # exits and faults go out together, below; draining is the server's

    def _outlet(self, vcpu: str) -> Outlet | None:
        """Where a vCPU's outcomes go. The stream of a session that was fenced off hears nothing more of it."""
        outlet = self.attachments.outlet(vcpu)
        try:
            side = self.state.vcpu(vcpu).agent
        except Refused:
            return outlet  # deleted: its VMM is to hear that
        session = side.session if isinstance(side, VcpuSide) else None
        return outlet if outlet is not None and session is not None and outlet.session == session.name else None

    def _deliver_exits(self, effects: list[Effect]) -> None:
        """Tell the watchers, each exit once per command, as it is now."""
        if self.exit_watchers.empty.is_set():
            return
        for name in dict.fromkeys(effect.exit for effect in effects if isinstance(effect, ExitChanged)):
            record = self.exit_record(name)
            if record is not None:
                news = ExitNews(record.vm, exit_to_proto(self.state, record), self.state.revision)
                self.exit_watchers.deliver(news)

    def _end_sessions(self, *, opened: bool) -> None:
        """Let the streams and the waiting calls of sessions that are over know. Where none can be, do not look."""
        alive, before = len(self.state.sessions), self._alive_sessions
        self._alive_sessions = alive
        if session_credits(alive) != session_credits(before):
            self.attachments.grant(session_credits(alive))
        if alive >= before and not opened:
            return
        for name in (self.attachments.sessions() | self.outcomes.sessions()) - self.state.sessions.keys():
            self._end_session(name, expired=self.state.ended_sessions.get(name, False))

    def _end_session(self, name: str, *, expired: bool) -> None:
        reason = Reason.SESSION_EXPIRED if expired else Reason.SESSION_NOT_FOUND
        text = f"session {name!r} {'has expired' if expired else 'was closed'}"
        failure = failure_of(Refused(reason, text, session=name))
        assert failure is not None
        self.outcomes.session_ended(name, failure)
        self.attachments.finish_session(name, failure if expired else None)

    # -- a full disk ---------------------------------------------------------------------------------------------------

    def _rolled_back(self, machine: HostMachine) -> None:
        """What nobody has heard of has not happened: go on with what is durable, and end what stands on the rest."""
        self.machine.become(machine)
        self._alive_sessions = len(machine.state.sessions)
        self.close()
        self._end_streams(StorageFullError("the disk is full"))
        for listener in self.listeners:
            listener.rolled_back()

    def _failed(self, error: JournalError) -> None:
        """Nothing is answered any more, and who waits for an answer hears why."""
        self._end_streams(error)
        self.failed.set()

    def _end_streams(self, error: JournalError) -> None:
        failure = failure_of(error)
        assert failure is not None
        self.outcomes.finish(failure)
        self.attachments.abandon(failure)
        self.exit_watchers.finish(failure)
        self.history.roll_back(failure)

    def _room_again(self) -> None:
        self._offset_ns = self.state.now_ns - self.clock.now_ns()
        if isinstance(self.journal, DurableJournal) and self.journal.durable < self._booted:
            self._boot(self.journal)  # it started on a full disk
        self._set_timer()

    # -- time ----------------------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        """Ask to be called when something is due next."""
        self.close()
        due_ns = self.machine.next_deadline_ns()
        if due_ns is not None:
            self._timer = self.clock.call_at(due_ns - self._offset_ns, self._on_timer)

    def _on_timer(self) -> None:
        """Let what is due happen. The timer may have come for a deadline that has moved meanwhile."""
        self._timer = None
        due_ns, now_ns = self.machine.next_deadline_ns(), self.now_ns()
        if due_ns is None or due_ns > now_ns:
            self._set_timer()
            return
        try:
            self.submit(Tick())
        except JournalError:
            return  # time goes on when there is room again, or never
        except Exception:
            _log.exception("a bug of the host: what was due at %d ns failed", due_ns)
            raise
        left_ns = self.machine.next_deadline_ns()
        if left_ns is not None and left_ns <= due_ns:
            self.close()  # rather no timer than one that never lets go
            raise CoreBug(f"what was due at {due_ns} ns is due still")


def _fenced(older: str, vcpu: str, epoch: int) -> Failure:
    """What a call of an older session hears that waits for an outcome of a vCPU it has lost."""
    text = f"{vcpu!r} has a newer session than {older!r}"
    return Failure.because("SESSION_FENCED", text, session=older, vcpu=vcpu, currentEpoch=epoch)


def host_gone() -> Failure:
    """What the streams end with when the host goes away."""
    return Failure.because("HOST_DRAINING", "the host is going away: open a new session where DRAINING said")
