"""One Attach stream: a reader that applies batches as they come, and a queue of what is to be written, in order.

    client --requests--> reader --submit--> agent
                                              | outcomes, directives, of this stream's vCPUs
    client <-responses-- responses() <---- the queue

The reader is one task for the whole stream. Nothing ever waits for a single read with a time limit: giving such a wait
up would cancel the call itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from fpstate.v1 import event_pb2, session_pb2

from fpstated.link.spans import span
from fpstated.link.trace import current_trace
from host_agent.commands import AckDirective, KeepAlive
from host_agent.events import Directive, DoneOutcome, Outcome
from host_agent.service.agent import HostAgent
from host_agent.service.batches import resume_of, seq_marks, submit_batch
from host_agent.service.credits import session_credits
from host_agent.service.errors import Failure, field_invalid
from host_agent.service.limits import OUTBOX_MAX, OUTCOME_BYTES_MAX, OUTCOMES_PER_MESSAGE_MAX
from host_agent.service.translate.batch import batch_from_proto
from host_agent.service.translate.done_run import outcomes_in_runs
from host_agent.service.translate.fields import duration, header, session_name, vcpu_name
from host_agent.service.translate.outcome import directive_to_proto, outcome_to_proto, resume_to_proto
from host_agent.state import NS_PER_S

_Item = Outcome | Directive | session_pb2.Draining | session_pb2.Credits


class AttachStream:
    """A stream whose `hello` was read and found good. ``session`` is the session's name."""

    def __init__(self, agent: HostAgent, hello: session_pb2.AttachHello) -> None:
        self.session = session_name("hello.session", hello.session)
        self._agent = agent
        self._epoch = hello.epoch
        self._done_runs = hello.done_runs
        agent.submit(KeepAlive(session=self.session, epoch=hello.epoch))
        self._vcpus = self._asked_for(hello.vcpus)
        self._queue: deque[_Item] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        #: What the client was told; 0 before ``attached``, which says it.
        self._credits = 0
        self._resume_target = ""
        self._half_closed = False
        self._finished = False
        self._failure: Exception | None = None

    def _asked_for(self, names: Sequence[str]) -> tuple[str, ...]:
        """The vCPUs of `hello`, all of the session's where it names none."""
        session = self._agent.state.sessions[self.session]
        for nr, name in enumerate(names):
            if vcpu_name(f"hello.vcpus[{nr}]", name) not in session.vcpus:
                self._agent.state.check_not_elsewhere(name.partition("/vcpus/")[0])
                text = f"{name!r} is not of {self.session!r}"
                raise Failure.because("VCPU_NOT_IN_SESSION", text, vcpu=name, session=self.session)
        return tuple(dict.fromkeys(names)) or tuple(session.vcpus)

    # -- what the agent calls ------------------------------------------------------------------------------------------

    def push(self, item: _Item) -> None:
        """Write this when its turn comes. A client that has stopped reading is given up in the end."""
        if len(self._queue) >= OUTBOX_MAX:
            text = f"{OUTBOX_MAX} outcomes and directives wait to be read"
            self.finish(Failure.because("LIMIT_REACHED", text, limit="attach_outbox", maximum=OUTBOX_MAX))
            return
        self._queue.append(item)
        if len(self._queue) >= OUTCOMES_PER_MESSAGE_MAX:
            self._room.clear()
        self._wake.set()

    def drain(self, grace_s: float, resume_target: str) -> None:
        """Tell the client that the host is about to go away, and where to go."""
        self._resume_target = resume_target
        self.push(session_pb2.Draining(resume_target=resume_target, grace=duration(round(grace_s * NS_PER_S))))

    def grow_old(self, grace_s: float) -> None:
        """Tell the client that the stream is about to end: it comes back here, or goes where a drain has sent it."""
        self.drain(grace_s, self._resume_target)

    def grant(self, credits: int) -> None:  # noqa: A002 -- the wire's word
        """Tell the client how many events its session may have under way from now on, unless it knows."""
        if self._credits not in (0, credits):
            self.push(session_pb2.Credits(events=credits))
            self._credits = credits

    def finish(self, failure: Exception | None) -> None:
        """Write what is queued and end the stream; what came first says how."""
        if not self._finished:
            self._finished, self._failure = True, failure
            self._wake.set()
            self._room.set()

    def abandon(self, failure: Exception) -> None:
        """End the stream; what is queued has not happened and is not written."""
        self._queue.clear()
        self._finished, self._failure = True, failure
        self._wake.set()
        self._room.set()

    # -- reading -------------------------------------------------------------------------------------------------------

    async def read(self, requests: AsyncIterator[session_pb2.AttachRequest]) -> None:
        """Apply requests until the client has said all. A bad message ends the stream, and says why."""
        try:
            async for request in requests:
                await self._room.wait()  # who does not read is not listened to either
                await self._agent.journal.room()
                if self._finished:
                    return
                self._take(request)
        except Exception as error:  # noqa: BLE001 -- the writing side raises it, where it becomes the call's status
            self.finish(error)
        else:
            self._half_closed = True
            self._wake.set()

    def _take(self, request: session_pb2.AttachRequest) -> None:
        match request.WhichOneof("body"):
            case "batch":
                self._submit(request.batch)
            case "directive_ack":
                ack = AckDirective(session=self.session, epoch=self._epoch, directive=request.directive_ack.id)
                self._agent.submit(ack)
            case "hello":
                raise out_of_order("batch or directive_ack", "a second hello")
            case None:
                raise field_invalid("body", "batch or directive_ack", "none")

    def _submit(self, message: event_pb2.EventBatch) -> None:
        """Apply a batch; each outcome goes to the newest attachment of its vCPU, to this stream where there is none."""
        with span("fpstate.v1.GuestSessionService/Attach batch", current_trace(), server=True):
            submit_batch(self._agent, self.session, self._epoch, batch_from_proto("batch", message), self._hand_on)

    def _hand_on(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            outlet = self._agent.attachments.outlet(outcome.vcpu)
            (outlet if outlet is not None and outlet.session == self.session else self).push(outcome)

    # -- writing -------------------------------------------------------------------------------------------------------

    async def responses(self) -> AsyncGenerator[session_pb2.AttachResponse, None]:
        """The messages of the stream. Raises what it was finished with."""
        self._agent.attachments.attach(self, self._vcpus)
        session = self._agent.state.sessions[self.session]
        for directive in session.directives.values():
            if directive.vcpu in self._vcpus or directive.vcpu not in session.vcpus:  # that one is gone: somebody told
                self.push(directive)
        yield self._attached()
        while not self._over():
            while self._queue:
                yield self._next_response()
            if not self._over():
                await self._wake.wait()
            self._wake.clear()
        if self._failure is not None:
            raise self._failure

    def _over(self) -> bool:
        """Nothing is left to write, and nothing will come: finished, or closed by the client with nothing pending."""
        if self._queue:
            return False
        return self._finished or (self._half_closed and not self._pending())

    def _pending(self) -> bool:
        """Whether a vCPU of this stream still owes a final outcome."""
        session = self._agent.state.sessions.get(self.session)
        if session is None:
            return False
        mine = self._agent.attachments.attached(self)
        return any(resume_of(self._agent.state, session, name).pending for name in mine if name in session.vcpus)

    def _attached(self) -> session_pb2.AttachResponse:
        state = self._agent.state
        session = state.sessions[self.session]
        here = [name for name in self._vcpus if name in session.vcpus]
        vcpus = [resume_to_proto(resume_of(state, session, name)) for name in here]
        self._credits = session_credits(len(state.sessions))
        attached = session_pb2.Attached(vcpus=vcpus, credits=self._credits)
        return session_pb2.AttachResponse(header=header(state), attached=attached)

    def _next_response(self) -> session_pb2.AttachResponse:
        """The next message: consecutive outcomes go together, up to the size of a message."""
        made = session_pb2.AttachResponse(header=header(self._agent.state))
        match self._queue[0]:
            case Outcome():
                made.outcomes.CopyFrom(self._next_outcomes())
            case Directive() as directive:
                made.directive.CopyFrom(directive_to_proto(directive))
                self._queue.popleft()
            case session_pb2.Credits() as granted:
                made.credits.CopyFrom(granted)
                self._queue.popleft()
            case session_pb2.Draining() as draining:
                made.draining.CopyFrom(draining)
                self._queue.popleft()
        if len(self._queue) < OUTCOMES_PER_MESSAGE_MAX:
            self._room.set()
        return made

    def _next_outcomes(self) -> session_pb2.Outcomes:
        outcomes: list[Outcome] = []
        size_bytes = 0
        while self._queue and len(outcomes) < OUTCOMES_PER_MESSAGE_MAX and size_bytes < OUTCOME_BYTES_MAX:
            item = self._queue[0]
            if not isinstance(item, Outcome):
                break
            outcomes.append(item)
            size_bytes += len(item.kind.data) if isinstance(item.kind, DoneOutcome) else 0
            self._queue.popleft()
        made = (
            outcomes_in_runs(outcomes)
            if self._done_runs
            else session_pb2.Outcomes(outcomes=[outcome_to_proto(outcome) for outcome in outcomes])
        )
        made.durable_through.extend(seq_marks(self._agent.state, self.session, outcomes))
        return made


def out_of_order(expected: str, got: str) -> Failure:
    """A message at the wrong place of a stream."""
    return Failure.because("ATTACH_OUT_OF_ORDER", f"expected {expected}, got {got}", expected=expected)
