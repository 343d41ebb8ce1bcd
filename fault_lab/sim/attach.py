"""Attach streams on a host's side: batches in order, outcomes and directives to the newest stream of a vCPU.

What ``host_agent.service.attach_stream`` does, without gRPC. Messages of a stream leave when all that they may speak of
is durable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fault_lab.sim import wire
from fault_lab.sim.duplex import DuplexExchange
from guest_agent.opening import VcpuResume
from guest_agent.outcome import Outcome as GuestOutcome
from guest_agent.outcome import Refusal
from host_agent import commands as c
from host_agent.errors import Refused
from host_agent.events import Directive, GuestEvent, Outcome, RejectedOutcome
from host_agent.service.credits import session_credits
from host_agent.sessions import resume
from host_agent.state import HostState, VcpuSide

if TYPE_CHECKING:
    from fault_lab.sim.host import HostNode


@dataclass(frozen=True, slots=True)
class Hello:
    """The first request: which session is attached, for all its vCPUs."""

    session: str
    epoch: int
    vcpus: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Events in order; ``received`` are (vCPU, number) up to which outcomes may be forgotten."""

    events: tuple[GuestEvent, ...]
    received: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Ack:
    """A directive was carried out."""

    directive: int


@dataclass(frozen=True, slots=True)
class Attached:
    """The first answer: where each vCPU goes on, and how many events may be under way."""

    vcpus: tuple[VcpuResume, ...]
    credits: int


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Outcomes as (vCPU, number, outcome), and the number up to which the host has taken each vCPU's events."""

    outcomes: tuple[tuple[str, int, GuestOutcome], ...]
    taken: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Credits:
    """How many events may be under way from now on."""

    events: int


@dataclass(slots=True)
class _Stream:
    exchange: DuplexExchange
    session: str
    epoch: int
    credits: int
    over: bool = False


class Streams:
    """The Attach streams of one process of a host."""

    def __init__(self, host: HostNode) -> None:
        self._host = host
        self._streams: list[_Stream] = []
        self._outlets: dict[str, _Stream] = {}

    # -- the service ---------------------------------------------------------------------------------------------------

    def attach(self, exchange: DuplexExchange, hello: Hello) -> None:
        """A stream begins: where its vCPUs go on, and what nobody has acknowledged. Raises ``Refused``."""
        self._host.apply(c.KeepAlive(session=hello.session, epoch=hello.epoch))
        state = self._state
        session = state.sessions[hello.session]
        here = [name for name in hello.vcpus if name in session.vcpus]
        stream = _Stream(exchange, hello.session, hello.epoch, self._credits)
        self._streams = [each for each in self._streams if not each.over and not each.exchange.done]
        self._streams.append(stream)
        self._outlets.update(dict.fromkeys(here, stream))
        resumes = tuple(wire.guest_resume(resume(state, name, session.vcpus[name])) for name in here)
        self._host.push(exchange, Attached(resumes, stream.credits))
        for directive in session.directives.values():
            self._host.push(exchange, wire.guest_directive(directive))
        exchange.listen(partial(self._take, stream))

    def _take(self, stream: _Stream, message: object) -> None:
        if stream.over:
            return
        try:
            match message:
                case Batch() if self._host.journal.full:
                    self._finish(stream, wire.because("STORAGE_FULL", "the host takes no new work until there is room"))
                case Batch():
                    self._submit(stream, message)
                case Ack(directive=directive):
                    self._host.apply(c.AckDirective(session=stream.session, epoch=stream.epoch, directive=directive))
                case _:
                    raise AssertionError(f"an agent never says {message}")
        except Refused as refused:
            refusal = wire.refusal_of(refused)
            assert refusal is not None
            self._finish(stream, refusal)

    def _submit(self, stream: _Stream, batch: Batch) -> None:
        left = self._credits_left(stream.session, len(batch.events))
        taken, refused = batch.events[:left], batch.events[left:]
        command = c.SubmitBatch(session=stream.session, epoch=stream.epoch, events=taken, received=batch.received)
        outcomes = [*self._host.apply(command), *(self._no_credit(stream.session, event) for event in refused)]
        if outcomes:
            self._say(stream, outcomes)

    # -- what becomes known --------------------------------------------------------------------------------------------

    def outcome(self, outcome: Outcome) -> None:
        """An event has an outcome that its answer did not have."""
        stream = self._outlet(outcome.vcpu)
        if stream is not None:
            self._say(stream, [outcome])

    def directive(self, session: str, directive: Directive) -> None:
        """The VMM of a vCPU is told something."""
        stream = self._outlets.get(directive.vcpu)
        if stream is not None and stream.session == session and not stream.over:
            self._host.push(stream.exchange, wire.guest_directive(directive))

    def check_sessions(self) -> None:
        """Streams of sessions that have ended end as well; all others hear of credits that have changed."""
        there = self._state.sessions
        for stream in self._streams:
            if stream.over:
                continue
            if stream.session not in there:
                self._finish(
                    stream, wire.because("SESSION_EXPIRED", "the session has expired: open a new one to go on")
                )
            elif stream.credits != self._credits:
                stream.credits = self._credits
                self._host.push(stream.exchange, Credits(stream.credits))

    def forget(self, status: Refusal) -> None:
        """Every stream ends at once."""
        for stream in self._streams:
            stream.over = True
            stream.exchange.answer(status)

    # -- inside --------------------------------------------------------------------------------------------------------

    @property
    def _state(self) -> HostState:
        return self._host.machine.state

    @property
    def _credits(self) -> int:
        return self._host.session_credits or session_credits(len(self._state.sessions))

    def _credits_left(self, session: str, wanted: int) -> int:
        """How many of the events the session may still have under way; as ``host_agent.service.batches`` has it."""
        record = self._state.sessions.get(session)
        if record is None or wanted + len(record.vcpus) <= self._credits:
            return wanted
        pending = sum(each.vcpu in record.vcpus for each in self._state.exits.values())
        return max(1, self._credits - pending)

    def _no_credit(self, session: str, event: GuestEvent) -> Outcome:
        text = f"{session!r} has {self._credits} events under way already"
        return Outcome(event.vcpu, event.seq, RejectedOutcome("CREDITS_EXCEEDED", text))

    def _outlet(self, vcpu: str) -> _Stream | None:
        """Where a vCPU's outcomes go: a session that was fenced off hears nothing more of it."""
        stream = self._outlets.get(vcpu)
        if stream is None or stream.over:
            return None
        try:
            side = self._state.vcpu(vcpu).agent
        except Refused:
            return stream  # it is gone, and its VMM is to hear that
        session = side.session if isinstance(side, VcpuSide) else None
        return stream if session is not None and session.name == stream.session else None

    def _say(self, stream: _Stream, outcomes: Iterable[Outcome]) -> None:
        said = tuple((each.vcpu, each.seq, wire.guest_outcome(each)) for each in outcomes)
        record = self._state.sessions.get(stream.session)
        names = dict.fromkeys(vcpu for vcpu, _, _ in said)
        mine = {name: record.vcpus[name] for name in names if name in record.vcpus} if record is not None else {}
        taken = tuple((name, self._state.side(vcpu).next_seq - 1) for name, vcpu in mine.items())
        self._host.push(stream.exchange, Outcomes(said, taken))

    def _finish(self, stream: _Stream, status: Refusal) -> None:
        stream.over = True
        self._host.release(stream.exchange, status)
