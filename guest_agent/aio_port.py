"""The port of one vCPU for asyncio: events go out in batches, outcomes come back in any message of the stream.

    submit_all(events)   queue -> numbers -> the stream -> outcomes -> the waiters

An event gets its number when it is sent. What the host did not look at (the vCPU is parked, or a number before it was
refused) goes back to the front of the queue without its number, and is sent again once everything sent has been heard
of: an old answer is never taken for that of a new event.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from guest_agent.error import EventRejected
from guest_agent.event import GuestEvent, Init
from guest_agent.instructions import Instructions
from guest_agent.moving import moved_to
from guest_agent.opening import VcpuResume
from guest_agent.outcome import Blocked, FinalOutcome, Gone, InstructionOutcome, Outcome, Pending, Rejected
from guest_agent.packed import NumberedEvent
from guest_agent.step import PendingEvent, PortStep
from guest_agent.wire import event_to_proto

if TYPE_CHECKING:
    from guest_agent.aio import AsyncSession

#: How long to leave a vCPU alone that is parked on an exit we were not told of.
_BLOCKED_PAUSE_S = 0.05

#: Events that are sent before the outcome of the first of them is here; a host keeps at least 1,024 outcomes of a vCPU.
_OUTCOMES_KEPT = 512

#: The number under which an event happened, and its final outcome.
_Final = tuple[int, FinalOutcome]
_Entry = tuple[GuestEvent, asyncio.Future[_Final]]


def _is_without_credit(outcome: Outcome) -> bool:
    """Whether the host has not looked at an event since too many were under way: its credits had just shrunk."""
    return isinstance(outcome, Rejected) and outcome.refusal.reason == "CREDITS_EXCEEDED"


class AsyncVcpuPort(Instructions[Coroutine[Any, Any, InstructionOutcome]]):
    """One vCPU of an `AsyncSession`; every method belongs to the session's event loop.

    Attributes:
        name: `vms/{vm}/vcpus/{index}`.
        uid: made by the host; the numbers belong to it.
        incarnation: how often the vCPU had been reset when the session was opened, from 1.
        intercepts: what to intercept as of the last attachment; every outcome says it anew. None: the host did not say.
        on_pending: called when the vCPU is parked on an exit.
        on_step: called for every event sent and every outcome, pending ones included.
        paused: the host has the vCPU paused: events wait here, an `Init` apart.
    """

    def __init__(self, session: AsyncSession, resume: VcpuResume) -> None:
        self.name = resume.vcpu
        self.uid = resume.uid
        self.incarnation = resume.incarnation
        self.intercepts = resume.intercepts
        self.on_pending: Callable[[PendingEvent], None] | None = None
        self.on_step: Callable[[PortStep], None] | None = None
        self.paused = False
        self._session = session
        self._ledger = resume.ledger()
        self._queue: deque[_Entry] = deque()
        self._sent = {seq: self._waiter() for seq in self._ledger.under_way}
        session.under_way += len(self._sent)
        self._left_over = next(iter(self._sent.values()), None)  # an earlier agent's, until somebody has waited for it
        self._unheard: set[int] = set()  # numbers sent of which nothing has been heard, on this connection
        self._settling = False
        self._ended_by: Exception | None = None

    # ---- submitting --------------------------------------------------------------------------------------------------

    async def submit(self, event: GuestEvent) -> InstructionOutcome:
        """Send one event and wait for its final outcome: `Done`, `Injected` or `Gone`.

        Giving the wait up (a timeout, a cancelled task) takes an event back that was not sent; one that was happens.

        Raises:
            EventRejected: the event was a mistake; it changed nothing.
            HostError, SessionLost: the session is over.
            ValueError: a number does not fit the wire. Nothing was sent.
        """
        (final,) = await self._submit([event])
        return self._instruction(*final)

    async def submit_all(self, events: Sequence[GuestEvent]) -> list[FinalOutcome]:
        """Send events in order, in as few messages as the credits allow, and wait for the final outcome of each.

        Not atomic: one that is `Rejected` or `Injected` does not keep those behind it from happening. One that finds
        the vCPU parked waits its turn; if that ends in `Gone`, so do those that had not happened.

        Raises:
            HostError, SessionLost, ValueError: as `submit`.
        """
        return [outcome for _seq, outcome in await self._submit(events)]

    async def wait_pending(self) -> InstructionOutcome:
        """Wait for the final outcome of the event that pends.

        That of an earlier session is kept until somebody has asked for it here. That of a wait that was given up is
        not: who asks after it came is told that nothing pends.

        Raises:
            LookupError: nothing pends.
            EventRejected, HostError, SessionLost: as `submit`.
        """
        waiter, waiting = self._left_over, self.pending
        if waiter is None and waiting is not None:
            if self._sent[waiting.seq].cancelled():
                self._sent[waiting.seq] = self._waiter()
            waiter = self._sent[waiting.seq]
        if waiter is None:
            raise LookupError(f"{self.name}: no event is pending")
        final = await asyncio.shield(waiter)
        self._left_over = None
        return self._instruction(*final)

    @property
    def pending(self) -> PendingEvent | None:
        """The first event that was sent and has no final outcome yet; None if there is none."""
        waiting = self._ledger.under_way
        if not waiting:
            return None
        return PendingEvent(waiting[0], self._ledger.event(waiting[0]), self._ledger.pending(waiting[0]))

    @property
    def next_seq(self) -> int:
        """The number of the next event that is sent, from 1."""
        return self._ledger.next_seq

    @property
    def received_through(self) -> int:
        """The number up to which every final outcome has been received; 0 for none."""
        return self._ledger.received_through

    @property
    def under_way(self) -> int:
        """How many events were sent and have no final outcome yet."""
        return len(self._sent)

    @property
    def queued(self) -> bool:
        """Whether an event waits to be sent."""
        return bool(self._queue)

    async def _submit(self, events: Sequence[GuestEvent]) -> list[_Final]:
        if self._ended_by is not None:
            raise self._ended_by
        for event in events:
            event_to_proto(self.name, 1, event)  # a number that does not fit is found before anything is sent
        waiters = [self._waiter() for _event in events]
        self._queue.extend(zip(events, waiters, strict=True))
        self._session.has_queued(self)
        self.pump()
        return await asyncio.gather(*waiters)

    def _waiter(self) -> asyncio.Future[_Final]:
        return asyncio.get_running_loop().create_future()

    def _instruction(self, seq: int, outcome: FinalOutcome) -> InstructionOutcome:
        if isinstance(outcome, Rejected):
            raise EventRejected(self.name, seq, outcome.refusal)
        return outcome

    # ---- sending -----------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send what may be sent: in order, within the credits; while the vCPU is parked or paused, an `Init` alone."""
        self._settling = self._settling and bool(self._unheard)
        if not self._session.attached or self._settling:
            return
        events = []
        for _credit in range(min(self._session.credits_left, self._room)):
            entry = self._next()
            if entry is None:
                break
            event, waiter = entry
            seq = self._ledger.take(event)
            self._sent[seq] = waiter
            self._unheard.add(seq)
            self._step(seq, None)
            events.append(NumberedEvent(self.name, seq, event))
        self._session.under_way += len(events)
        self._session.send(events)

    @property
    def _room(self) -> int:
        """How many events more the host keeps outcomes for: what is received is said with the next message."""
        return max(0, _OUTCOMES_KEPT - (self._ledger.next_seq - 1 - self._ledger.received_through))

    def _next(self) -> _Entry | None:
        """Take the next event that may be sent from the queue; those nobody waits for any more are dropped."""
        if self._ledger.parked or self.paused:
            return self._next_init()
        while self._queue:
            entry = self._queue.popleft()
            if not entry[1].cancelled():
                return entry
        return None

    def _next_init(self) -> _Entry | None:
        if self._unheard:  # they come back as blocked, and have the Init's number until then
            return None
        entry = next((each for each in self._queue if isinstance(each[0], Init) and not each[1].cancelled()), None)
        if entry is not None:
            self._queue.remove(entry)
        return entry

    def attach(self, resume: VcpuResume) -> list[NumberedEvent]:
        """Go on on a new connection: return what was sent and has no final outcome yet, under the same numbers.

        Raises:
            SessionLost: the host does not go on where this agent is.
        """
        resume.check_same(self.uid, self._ledger)
        self.intercepts = resume.intercepts
        known = [(seq, event) for seq in self._sent if (event := self._ledger.event(seq)) is not None]
        self._unheard = {seq for seq, _event in known}
        return [NumberedEvent(self.name, seq, event) for seq, event in sorted(known, key=lambda each: each[0])]

    def unknown_seq(self, resume: VcpuResume) -> int | None:
        """Return the number of an earlier agent's event whose final outcome this connection will not bring; or None."""
        unknown = [seq for seq in self._sent if self._ledger.event(seq) is None and seq != resume.pending_seq]
        return unknown[0] if unknown else None

    # ---- hearing -----------------------------------------------------------------------------------------------------

    def hear(self, seq: int, outcome: Outcome, *, taken: bool = True) -> None:
        """Take an outcome in. `taken`: the host has used the number up."""
        self._unheard.discard(seq)
        if seq not in self._sent:
            return  # heard before, or of a number that was given back
        if isinstance(outcome, Blocked) or _is_without_credit(outcome):
            self._give_back(seq)
        elif isinstance(outcome, Pending):
            self._park(seq, outcome)
        elif moved_to(outcome) and self._session.follows(moved_to(outcome)):
            return  # it goes on where its VM is, and is asked for there again
        else:
            self._finish(seq, outcome, taken=taken)

    def _park(self, seq: int, pending: Pending) -> None:
        if self._ledger.pending(seq) == pending:
            return  # said again on a new connection
        self._step(seq, pending)
        self._ledger.note(seq, pending)
        if self.on_pending is not None:
            self.on_pending(PendingEvent(seq, self._ledger.event(seq), pending))

    def _step(self, seq: int, outcome: Outcome | None) -> None:
        if self.on_step is not None:
            self.on_step(PortStep(self.name, seq, self._ledger.event(seq), outcome))

    def _finish(self, seq: int, outcome: FinalOutcome, *, taken: bool) -> None:
        self._step(seq, outcome)
        self._ledger.note(seq, outcome)
        waiter = self._sent.pop(seq)
        self._session.under_way -= 1
        self._session.has_received(self)
        if not waiter.done():
            waiter.set_result((seq, outcome))
        if isinstance(outcome, Gone):
            self._all_gone(outcome)
        elif not taken:
            self._give_back(seq)

    def _give_back(self, seq: int) -> None:
        """Put event `seq` and those behind it back to the front of the queue: their numbers are free again."""
        again = sorted(each for each in self._sent if each >= seq)
        entries = [(self._ledger.event(each), self._sent.pop(each)) for each in again]
        self._queue.extendleft(reversed([(event, waiter) for event, waiter in entries if event is not None]))
        self._session.under_way -= len(entries)
        self._session.has_queued(self)
        self._ledger.untake(seq)
        self._settling = True
        if not self._ledger.parked:
            asyncio.get_running_loop().call_later(_BLOCKED_PAUSE_S, self.pump)

    def _all_gone(self, gone: Gone) -> None:
        """What was to happen to the vCPU in its earlier life does not happen in the next one."""
        queue, self._queue = self._queue, deque()
        for _event, waiter in queue:
            if not waiter.done():
                waiter.set_result((0, gone))

    def end(self, error: Exception) -> None:
        """Fail every wait, and every later call, with `error`: the session is over."""
        self._ended_by = error
        for waiter in [*self._sent.values(), *(waiter for _event, waiter in self._queue)]:
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # somebody may be waiting, but nobody has to
        self._queue.clear()
