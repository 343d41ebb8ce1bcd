"""The port of one vCPU: a blocking call for each trapped instruction, exactly once whatever the connection does.

    submit(event)   SubmitEvents under the vCPU's next number -> done, inject, gone: that is it
                                                              -> pending: tell `on_pending`, then WaitOutcome

A call that passes its deadline or loses its connection is repeated under the same number, which the host recognises.
SubmitEvents is asked to answer as soon as there is any outcome, not only a final one: that is how a VMM gets to know
that its vCPU is parked, and on which exit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import grpc
from fpstate.v1 import event_pb2
from fpstate.v1 import session_pb2 as pb

from fpstated.link.trace import in_one_trace, trace_metadata
from guest_agent.call import BlockingCalls
from guest_agent.error import EventRejected, HostError
from guest_agent.event import GuestEvent, Init
from guest_agent.instructions import Instructions
from guest_agent.moving import refusal_in
from guest_agent.opening import SessionKey, VcpuResume
from guest_agent.outcome import Blocked, InstructionOutcome, Outcome, Pending, Refusal, Rejected
from guest_agent.step import PendingEvent, PortStep
from guest_agent.wait import EventBlocked, StillPending
from guest_agent.wire import MessageError, batch_to_proto, event_to_proto, outcome_from_proto

if TYPE_CHECKING:
    from guest_agent.session import Session

SUBMIT_TIMEOUT_S = 10.0
#: One stretch of waiting for a decision; the next begins at once. Short enough that a dead connection is noticed.
WAIT_TIMEOUT_S = 60.0


class VcpuPort(Instructions[InstructionOutcome]):
    """One vCPU of a session. `submit` and its shorthands belong to the vCPU's thread; `init` and `interrupt` to any.

    Attributes:
        name: `vms/{vm}/vcpus/{index}`.
        uid: made by the host; the numbers belong to it.
        incarnation: how often the vCPU had been reset when the session was opened, from 1.
        intercepts: what to intercept as of the session's opening; every outcome says it anew. None: not said.
        on_pending: called, in the thread that waits, when the vCPU is parked on an exit.
        on_step: called, in the thread that waits, for every event sent and every outcome, pending ones included.
    """

    def __init__(self, session: Session, resume: VcpuResume, *, reconnect_s: float) -> None:
        self.name = resume.vcpu
        self.uid = resume.uid
        self.incarnation = resume.incarnation
        self.intercepts = resume.intercepts
        self.on_pending: Callable[[PendingEvent], None] | None = None
        self.on_step: Callable[[PortStep], None] | None = None
        self._session = session
        self._ledger = resume.ledger()
        self._submitting = threading.Lock()  # held from taking a number to the host's first word about it
        self._calls = BlockingCalls(session, reconnect_s=reconnect_s)

    # ---- submitting and waiting --------------------------------------------------------------------------------------

    def submit(self, event: GuestEvent) -> InstructionOutcome:
        """Send one event and block until its outcome is final: `Done`, `Injected` or `Gone`.

        Raises:
            EventRejected: the event was a mistake; it changed nothing.
            StillPending: an earlier event waits; only `Init` may be sent then. Nothing was sent.
            Interrupted: `interrupt` was called. The event stays; `wait_pending` goes on waiting.
            HostError: the host refused the call (`SESSION_FENCED` ...) or stayed away; the event stays, as above.
            SessionLost: this agent's numbers are not the host's any more.
            ValueError: a number does not fit the wire. Nothing was sent.
        """
        event_to_proto(self.name, 1, event)  # a number that does not fit is found before one is taken
        with in_one_trace():
            with self._submitting:
                self._require_free(event)
                seq = self._ledger.take(event)
                self._step(seq, event, None)
                outcome = self._send(seq, event)
            return self._finish(seq, event, outcome)

    def wait_pending(self) -> InstructionOutcome:
        """Block until the pending event has its final outcome: one of an earlier session, or one that was interrupted.

        Raises:
            LookupError: nothing pends.
            EventRejected, Interrupted, HostError, SessionLost: as `submit`.
        """
        waiting = self.pending
        if waiting is None:
            raise LookupError(f"{self.name}: no event is pending")
        if waiting.event is None:
            return self._finish(waiting.seq, None, waiting.pending)
        with self._submitting:
            outcome = self._send(waiting.seq, waiting.event)
        return self._finish(waiting.seq, waiting.event, outcome)

    @property
    def pending(self) -> PendingEvent | None:
        """The first event without its final outcome; None if the next one can be sent."""
        waiting = self._ledger.under_way
        if not waiting:
            return None
        return PendingEvent(waiting[0], self._ledger.event(waiting[0]), self._ledger.pending(waiting[0]))

    @property
    def next_seq(self) -> int:
        """The number of the next event, from 1."""
        return self._ledger.next_seq

    def interrupt(self) -> None:
        """End the blocking call with `Interrupted`, or the next one if none is under way. From any thread."""
        self._calls.interrupt()

    def check_resume(self, resume: VcpuResume) -> None:
        """Check that a new session goes on where this port is.

        Raises:
            SessionLost: it does not.
        """
        resume.check_same(self.uid, self._ledger)
        self.intercepts = resume.intercepts

    # ---- one event ---------------------------------------------------------------------------------------------------

    def _require_free(self, event: GuestEvent) -> None:
        waiting = self.pending
        if waiting is not None and not isinstance(event, Init):
            raise StillPending(f"{self.name}: event {waiting.seq} waits on {waiting.pending.exit or 'the host'}")

    def _send(self, seq: int, event: GuestEvent) -> Outcome:
        """Send event `seq` until the host has said something about it."""
        batch = batch_to_proto(
            [event_to_proto(self.name, seq, event)], received_through={self.name: self._ledger.received_through}
        )

        def start(key: SessionKey) -> grpc.Future[pb.SubmitEventsResponse]:
            request = pb.SubmitEventsRequest(session=key.name, epoch=key.epoch, batch=batch, wait=pb.WAIT_MODE_ACCEPTED)
            return self._session.stub.SubmitEvents.future(request, timeout=SUBMIT_TIMEOUT_S, metadata=trace_metadata())

        try:
            answer = self._calls.until_answered(start, lambda reply: self._moves(reply.outcomes.outcomes)).outcomes
        except HostError as error:
            if error.refusal.code == "INVALID_ARGUMENT":  # the message, not the event: the host has not looked at it
                self._ledger.untake(seq)
            raise
        outcome = self._only(answer, seq)
        if isinstance(outcome, Rejected) and not _is_taken(answer, self.name, seq):
            self._ledger.untake(seq)
        return outcome

    def _moves(self, outcomes: Iterable[event_pb2.EventOutcome]) -> Refusal | None:
        """Why the event is to be sent again: its VM is leaving, or lives elsewhere and the session goes there too."""
        refusals = (refusal_in(outcome_from_proto(each)) for each in outcomes)
        found = next((each for each in refusals if each is not None), None)
        return found if found is None or found.reason != "VM_MOVED" or self._session.movable else None

    def _only(self, answer: pb.Outcomes, seq: int) -> Outcome:
        if [each.seq for each in answer.outcomes] != [seq]:
            raise MessageError(f"{self.name}: expected one outcome, of event {seq}, got {answer}")
        return outcome_from_proto(answer.outcomes[0])

    def _finish(self, seq: int, event: GuestEvent | None, outcome: Outcome) -> InstructionOutcome:
        """Note an outcome, and wait for the final one where it is not."""
        while isinstance(outcome, Pending):
            self._note(seq, event, outcome)
            if self.on_pending is not None:
                self.on_pending(PendingEvent(seq, event, outcome))
            outcome = self._wait(seq, event)
        if isinstance(outcome, Blocked):
            self._ledger.untake(seq)
            raise EventBlocked(self.name, seq, outcome.expected_seq, outcome.exit)
        self._note(seq, event, outcome)
        if isinstance(outcome, Rejected):
            raise EventRejected(self.name, seq, outcome.refusal)
        return outcome

    def _note(self, seq: int, event: GuestEvent | None, outcome: Outcome) -> None:
        self._ledger.note(seq, outcome)
        self._step(seq, event, outcome)

    def _step(self, seq: int, event: GuestEvent | None, outcome: Outcome | None) -> None:
        if self.on_step is not None:
            self.on_step(PortStep(self.name, seq, event, outcome))

    def _wait(self, seq: int, event: GuestEvent | None) -> Outcome:
        """Wait for the final outcome of an event that the host knows, in stretches."""
        key = self._session.key

        def start(key: SessionKey) -> grpc.Future[pb.WaitOutcomeResponse]:
            request = pb.WaitOutcomeRequest(session=key.name, epoch=key.epoch, vcpu=self.name, seq=seq)
            return self._session.stub.WaitOutcome.future(request, timeout=WAIT_TIMEOUT_S, metadata=trace_metadata())

        try:
            reply = self._calls.until_answered(start, lambda reply: self._moves([reply.outcome]))
            return outcome_from_proto(reply.outcome)
        except HostError as error:
            # A host that lost the event with its memory does not know the number: it is sent again.
            if event is None or error.reason not in ("SEQ_GAP", "FIELD_INVALID") or self._session.key == key:
                raise
            return self._send(seq, event)


def _is_taken(answer: pb.Outcomes, vcpu: str, seq: int) -> bool:
    """Whether the host has used up the number of a rejected event, as far as it says up to where it has taken any."""
    return all(mark.seq >= seq for mark in answer.durable_through if mark.vcpu == vcpu)
