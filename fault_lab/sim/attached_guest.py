"""A guest agent on an Attach stream: what ``guest_agent``'s asyncio client does.

    queue -> numbers -> the stream -> outcomes, in any message -> whoever plays

Several events of a vCPU may be under way at once, as many as the plan and the host's credits allow. What the host did
not look at goes back to the front of the queue without its number. A stream that is lost is opened again, and what has
no final outcome is sent again under its number. PAUSE keeps a vCPU's events back until RESUME.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from fault_lab.linear.form import outcome_result
from fault_lab.sim import wire
from fault_lab.sim.attach import Ack, Attached, Batch, Credits, Hello, Outcomes
from fault_lab.sim.duplex import DuplexExchange, open_duplex
from fault_lab.sim.guest import NOT_OURS, GivenUpError, GuestNode, Patience, Port
from fault_lab.sim.services import WaitOutcome
from fault_lab.sim.task import Signal, Sleep, Step, Task, Wait, next_of
from fault_lab.sim.workload import Part
from guest_agent.event import GuestEvent, Init
from guest_agent.moving import moved_to
from guest_agent.opening import Opened
from guest_agent.outcome import (
    Blocked,
    Directive,
    DirectiveKind,
    Done,
    FinalOutcome,
    Gone,
    InstructionOutcome,
    Outcome,
    Pending,
    Refusal,
    Rejected,
)
from guest_agent.recovery import Remedy, remedy
from host_agent import commands as c
from host_agent.events import GuestEvent as HostEvent

#: How long a vCPU is left alone that the host says is parked. Source: guest_agent/aio_port.py.
_BLOCKED_NS: Final = 50_000_000
#: Events that are sent before the outcome of the first of them is here. Source: guest_agent/aio_port.py.
_OUTCOMES_KEPT: Final = 512
_ENDED: Final = Refusal("UNAVAILABLE", "the host has ended the stream")


@dataclass(slots=True)
class _Lane:
    """What goes through the port of one vCPU."""

    port: Port
    queue: deque[GuestEvent] = field(default_factory=deque)
    finals: deque[FinalOutcome] = field(default_factory=deque)
    changed: Signal = field(default_factory=Signal)
    #: Numbers sent of which nothing has been heard on this stream; until there are none, nothing given back is sent.
    unheard: set[int] = field(default_factory=set)
    settling: bool = False
    paused: bool = False
    directive: int = 0
    #: What is asked, for the history: by number the call and its name.
    calls: dict[int, tuple[int, str]] = field(default_factory=dict)

    @property
    def sent(self) -> list[int]:
        """The numbers that this process has sent and that have no final outcome."""
        ledger = self.port.ledger
        return [seq for seq in ledger.under_way if ledger.event(seq) is not None]

    def may_send(self) -> bool:
        """Whether the first of the queue may go: while the vCPU is parked or paused, an INIT alone."""
        ledger = self.port.ledger
        if not self.queue or self.settling or ledger.next_seq - 1 - ledger.received_through >= _OUTCOMES_KEPT:
            return False
        return not (ledger.parked or self.paused) or (isinstance(self.queue[0], Init) and not self.unheard)


class AttachedGuest(GuestNode):
    """The agent of one VM, attached."""

    def _forget(self) -> None:
        super()._forget()
        self._lanes: dict[str, _Lane] = {}
        self._stream: DuplexExchange | None = None
        self._credits = 0

    def _opened(self, opened: Opened) -> None:
        super()._opened(opened)
        for name, port in self.ports.items():
            self._lanes.setdefault(name, _Lane(port))

    def _main(self) -> Task:
        yield from super()._main()
        self.spawn(self._guarded(self._stay_attached()))

    # -- the stream ----------------------------------------------------------------------------------------------------

    def _stay_attached(self) -> Task:
        patience = Patience(self)
        while True:
            key = self._held()
            hello = Hello(key.name, key.epoch, tuple(self._lanes))
            status = yield from self._listen(open_duplex(self, "Attach", hello), patience)
            self._stream = None
            for lane in self._lanes.values():
                self._cut_off(lane)
            match remedy(status):
                case Remedy.AGAIN:
                    pass
                case Remedy.LATER:
                    self._pauses_for(patience, status)
                    yield Sleep(patience.pause_ns(status))
                case Remedy.REOPEN:
                    yield from self._reopen(key)
                case Remedy.MOVE:
                    yield from self._move(key, status.metadata["target"])
                    for lane in self._lanes.values():
                        lane.directive = 0  # numbers of directives are each host's own
                case _:
                    raise GivenUpError(status)

    def _listen(self, exchange: DuplexExchange, patience: Patience) -> Generator[Step, Any, Refusal]:
        """Take in what comes until the stream ends; returns the status it ended with."""
        assert exchange.stream is not None
        while True:
            news = yield from next_of(exchange.stream)
            match news:
                case Refusal():
                    return _ENDED if news.code == "OK" else news
                case Attached():
                    patience.reset()
                    self._stream = exchange
                    self._take_attached(news)
                case Outcomes():
                    target = self._take_outcomes(news)
                    if target:
                        return _moved(target)
                case Credits():
                    self._credits = news.events
                case Directive():
                    self._carry_out(news)
                    if news.kind is DirectiveKind.MOVED:
                        return _moved(news.target)
            for lane in self._lanes.values():
                self._pump(lane)

    def _take_attached(self, attached: Attached) -> None:
        """Send again what has no final outcome yet."""
        self._credits = attached.credits
        for resume in attached.vcpus:
            lane = self._lanes[resume.vcpu]
            resume.check_same(lane.port.uid, lane.port.ledger)
            lane.unheard = set(lane.sent)
            self._say(lane, lane.sent)

    def _take_outcomes(self, news: Outcomes) -> str:
        """Hear each; or return where the VM is now: what says so is no outcome, and is asked for again there."""
        target = next((found for _, _, outcome in news.outcomes if (found := moved_to(outcome))), "")
        taken = dict(news.taken)
        for vcpu, seq, outcome in () if target else news.outcomes:
            self._hear(self._lanes[vcpu], seq, outcome, taken=taken.get(vcpu, seq) >= seq)
        return target

    def _cut_off(self, lane: _Lane) -> None:
        """Nobody knows what has become of what was asked."""
        for seq, (call, f) in lane.calls.items():
            self.world.record("info", process=lane.port.vcpu, f=f, call=call, value=f"{seq}: the stream is lost")
        lane.calls.clear()
        lane.unheard.clear()
        lane.settling = False

    def _keep_alive(self) -> Task:
        """Renew the lease with a batch that only says what was received. Who is not attached renews nothing."""
        while True:
            yield Sleep(self._lease_ns // 3)
            if self._stream is not None:
                self._stream.say(Batch((), self._received(self._lanes.values())))

    def _carry_out(self, directive: Directive) -> None:
        """Do what the host has decided; what comes again is only acknowledged."""
        lane = self._lanes[directive.vcpu]
        if directive.id > lane.directive:
            lane.directive = directive.id
            lane.paused = directive.kind is DirectiveKind.PAUSE
            self.world.record(
                "directive", node=self.name, vcpu=directive.vcpu, kind=directive.kind.value, id=directive.id
            )
        if self._stream is not None:
            self._stream.say(Ack(directive.id))

    # -- sending -------------------------------------------------------------------------------------------------------

    def _pump(self, lane: _Lane) -> None:
        """Send what may be sent: in order, within the credits."""
        lane.settling = lane.settling and bool(lane.unheard)
        numbers: list[int] = []
        under_way = sum(len(each.port.ledger.under_way) for each in self._lanes.values())
        while self._stream is not None and under_way + len(numbers) < self._credits and lane.may_send():
            seq = lane.port.ledger.take(lane.queue.popleft())
            lane.unheard.add(seq)
            numbers.append(seq)
        self._say(lane, numbers)

    def _say(self, lane: _Lane, numbers: list[int]) -> None:
        if self._stream is None or not numbers:
            return
        vcpu, ledger = lane.port.vcpu, lane.port.ledger
        events = []
        for seq in numbers:
            event = ledger.event(seq)
            assert event is not None, "what is sent is kept"
            sent = HostEvent(vcpu, seq, wire.host_event(vcpu, event))
            events.append(sent)
            self._ask(lane, seq, "SubmitEvents", c.SubmitBatch(session="", epoch=self._held().epoch, events=(sent,)))
        self._stream.say(Batch(tuple(events), self._received([lane])))

    @staticmethod
    def _received(lanes: Iterable[_Lane]) -> tuple[tuple[str, int], ...]:
        marks = ((lane.port.vcpu, lane.port.ledger.received_through) for lane in lanes)
        return tuple(mark for mark in marks if mark[1])

    def _ask(self, lane: _Lane, seq: int, f: str, request: object) -> None:
        """Write down that an event's outcome is asked for: a call of its own, whatever stream it goes over."""
        world, call = self.world, self.world.next_call()
        lane.calls[seq] = call, f
        said, op = world.brief(request), world.operation(request)
        stream = self._stream.id if self._stream is not None else 0
        world.record("invoke", process=lane.port.vcpu, f=f, call=call, value=said, stream=stream, **op)

    # -- hearing -------------------------------------------------------------------------------------------------------

    def _hear(self, lane: _Lane, seq: int, outcome: Outcome, *, taken: bool) -> None:
        lane.unheard.discard(seq)
        self._note_heard(lane, seq, outcome, taken=taken)
        if seq not in lane.sent:
            return  # heard before, or of a number that was given back
        match outcome:
            case Pending():
                lane.port.ledger.note(seq, outcome)
                if seq not in lane.calls:
                    wanted = WaitOutcome("", self._held().epoch, lane.port.vcpu, seq)
                    self._ask(lane, seq, "WaitOutcome", wanted)
            case Blocked() | Rejected(refusal=Refusal(reason="CREDITS_EXCEEDED")):
                self._give_back(lane, seq)
            case Rejected(refusal=refusal) if refusal.reason in NOT_OURS:
                raise GivenUpError(refusal)
            case _:
                self._finish_event(lane, seq, outcome, taken=taken)

    def _note_heard(self, lane: _Lane, seq: int, outcome: Outcome, *, taken: bool) -> None:
        """Write down what was heard; a wait goes on until the outcome is final."""
        call, f = lane.calls.get(seq, (0, ""))
        if not call or (f == "WaitOutcome" and isinstance(outcome, Pending)):
            return
        del lane.calls[seq]
        said = outcome_result(outcome, taken=taken)
        self.world.record("ok", process=lane.port.vcpu, f=f, call=call, value=self.world.brief(outcome), result=said)

    def _finish_event(self, lane: _Lane, seq: int, outcome: FinalOutcome, *, taken: bool) -> None:
        port = lane.port
        if taken:
            self.world.rules.guest_heard(self, port.vcpu, port.uid, seq, outcome)
        port.ledger.note(seq, outcome)
        lane.finals.append(outcome)
        if isinstance(outcome, Gone):  # what was to happen in the vCPU's earlier life does not happen in the next
            lane.finals.extend(outcome for _ in lane.queue)
            lane.queue.clear()
        elif not taken:
            self._give_back(lane, seq)
        lane.changed.give()

    def _give_back(self, lane: _Lane, seq: int) -> None:
        """Put event ``seq`` and those behind it back to the front of the queue: their numbers are free again."""
        ledger = lane.port.ledger
        again = [event for each in ledger.under_way if each >= seq and (event := ledger.event(each)) is not None]
        lane.queue.extendleft(reversed(again))
        ledger.untake(seq)
        lane.settling = True
        if not ledger.parked:
            self.after(_BLOCKED_NS, "sends again", lambda: self._pump(lane))

    # -- playing -------------------------------------------------------------------------------------------------------

    def _submit(self, port: Port, event: GuestEvent) -> Generator[Step, Any, InstructionOutcome | Rejected]:
        lane = self._lanes[port.vcpu]
        self._put(lane, event)
        return (yield from self._final(lane))

    def _put(self, lane: _Lane, event: GuestEvent) -> None:
        lane.queue.append(event)
        self._pump(lane)

    @staticmethod
    def _final(lane: _Lane) -> Generator[Step, Any, FinalOutcome]:
        """The next final outcome, in the order of the events."""
        while not lane.finals:
            yield Wait(lane.changed)
        return lane.finals.popleft()

    def _round(self, port: Port, part: Part) -> Generator[Step, Any, str]:
        """Drawn events do not depend on outcomes: as many as the plan has are under way at once."""
        most = self._planned.attach.events
        if part.script is not None or most <= 1:
            return (yield from super()._round(port, part))
        lane, events, under_way = self._lanes[port.vcpu], part.round(port.round), 0
        event: GuestEvent | None = next(events)
        ending = "halted"
        while event is not None or under_way:
            if event is not None and under_way < most:
                port.sent += 1
                think_ns = part.think(self._seed, port.sent)
                if think_ns:
                    yield Sleep(think_ns)
                self._put(lane, event)
                under_way += 1
                event = _next_of(events)
                continue
            outcome = yield from self._final(lane)
            under_way -= 1
            if _stops(outcome):
                ending, event = "killed", None
            elif isinstance(outcome, Gone) and event is not None:
                ending, event = "stopped", None
        events.close()
        return ending


def _next_of(events: Generator[GuestEvent, InstructionOutcome, Any]) -> GuestEvent | None:
    """The next drawn event, whatever comes of the one before; None behind the last."""
    try:
        return events.send(Done())
    except StopIteration:
        return None


def _moved(target: str) -> Refusal:
    return Refusal("FAILED_PRECONDITION", f"the VM lives at {target} now", "VM_MOVED", {"target": target})


def _stops(outcome: FinalOutcome) -> bool:
    """Whether the vCPU will never run again."""
    if isinstance(outcome, Gone):
        return outcome.directive.kind is DirectiveKind.STOP
    return isinstance(outcome, Rejected) and outcome.refusal.reason in ("VCPU_KILLED", "VCPU_BROKEN")
