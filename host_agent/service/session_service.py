"""GuestSessionService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from fpstate.v1 import session_pb2, session_pb2_grpc

from host_agent.commands import CloseSession, KeepAlive, OpenSession
from host_agent.service.access.principal import current_principal
from host_agent.service.agent import HostAgent
from host_agent.service.attach_stream import AttachStream, out_of_order
from host_agent.service.batches import seq_marks, submit_batch, submit_until_final
from host_agent.service.credits import session_credits
from host_agent.service.errors import Failure, field_invalid
from host_agent.service.layers import Context
from host_agent.service.limits import HELLO_DEADLINE_S, LEASE_MIN_NS
from host_agent.service.paging import page
from host_agent.service.stream_age import StreamAge
from host_agent.service.translate.batch import batch_from_proto
from host_agent.service.translate.fields import (
    duration,
    duration_ns,
    header,
    request_id,
    session_name,
    text,
    vcpu_name,
    vm_name,
)
from host_agent.service.translate.outcome import outcome_to_proto, resume_to_proto
from host_agent.service.translate.session import session_to_proto
from host_agent.sessions import Opened, find_outcome
from host_agent.state import HostState

_RUN_MODES = (session_pb2.RUN_MODE_UNSPECIFIED, session_pb2.RUN_MODE_IMPLICIT, session_pb2.RUN_MODE_EXPLICIT)
_WAIT_MODES = (session_pb2.WAIT_MODE_UNSPECIFIED, session_pb2.WAIT_MODE_ACCEPTED, session_pb2.WAIT_MODE_FINAL)


class GuestSessionService(session_pb2_grpc.GuestSessionServiceServicer):
    """Sessions, their streams, and the unary twins."""

    def __init__(self, agent: HostAgent, age: StreamAge) -> None:
        self._agent = agent
        self._age = age

    async def OpenSession(
        self, request: session_pb2.OpenSessionRequest, context: Context
    ) -> session_pb2.OpenSessionResponse:
        """Open a session over vCPUs that exist."""
        opened: Opened = self._agent.submit(_open_session(request))
        return session_pb2.OpenSessionResponse(
            header=header(self._agent.state),
            session=opened.session.name,
            epoch=opened.session.epoch,
            lease=duration(opened.session.lease_ns),
            vcpus=[resume_to_proto(each) for each in opened.vcpus],
            credits=session_credits(len(self._agent.state.sessions)),
        )

    async def KeepAlive(self, request: session_pb2.KeepAliveRequest, context: Context) -> session_pb2.KeepAliveResponse:
        """Renew the lease."""
        lease_ns = self._renew(request.session, request.epoch)
        return session_pb2.KeepAliveResponse(header=header(self._agent.state), lease=duration(lease_ns))

    async def CloseSession(
        self, request: session_pb2.CloseSessionRequest, context: Context
    ) -> session_pb2.CloseSessionResponse:
        """End a session; closing a closed one is OK."""
        name = session_name("session", request.session)
        command = CloseSession(session=name, epoch=request.epoch, request_id=request_id(request.request_id))
        if name not in self._agent.state.ended_sessions:
            self._agent.submit(command)
        return session_pb2.CloseSessionResponse(header=header(self._agent.state))

    async def Attach(
        self, request_iterator: AsyncIterator[session_pb2.AttachRequest], context: Context
    ) -> AsyncIterator[session_pb2.AttachResponse]:
        """Send events and receive outcomes until either side ends."""
        first = await self._first(request_iterator)
        if first is None:
            return
        if first.WhichOneof("body") != "hello":
            raise out_of_order("hello", str(first.WhichOneof("body")))
        stream = AttachStream(self._agent, first.hello)
        reader = asyncio.create_task(stream.read(request_iterator), name=f"attach {stream.session}")
        try:
            with self._age.limit(lambda: stream.finish(None), warn=stream.grow_old):
                async with aclosing(stream.responses()) as responses:
                    async for response in responses:
                        yield response
        finally:
            self._agent.attachments.detach(stream)
            reader.cancel()

    async def _first(self, requests: AsyncIterator[session_pb2.AttachRequest]) -> session_pb2.AttachRequest | None:
        """The first message, None where the client has nothing to say. Raises where it says nothing for an age."""
        reading = asyncio.ensure_future(_next(requests))

        def give_up() -> None:
            reading.cancel()

        try:
            with self._age.limit(give_up):
                await asyncio.wait({reading}, timeout=HELLO_DEADLINE_S)
            said = reading.done() and not reading.cancelled()
        finally:
            reading.cancel()
        if not said:
            raise out_of_order("hello", "nothing")
        return reading.result()

    async def SubmitEvents(
        self, request: session_pb2.SubmitEventsRequest, context: Context
    ) -> session_pb2.SubmitEventsResponse:
        """Apply one batch and answer with its outcomes, after waiting for the final ones if asked to."""
        if request.wait not in _WAIT_MODES:
            raise field_invalid("wait", "ACCEPTED or FINAL", request.wait)
        name = session_name("session", request.session)
        batch = batch_from_proto("batch", request.batch)
        if request.wait == session_pb2.WAIT_MODE_FINAL:
            outcomes = await submit_until_final(self._agent, name, request.epoch, batch)
        else:
            outcomes = submit_batch(self._agent, name, request.epoch, batch)
        state = self._agent.state
        return session_pb2.SubmitEventsResponse(
            header=header(state),
            outcomes=session_pb2.Outcomes(
                outcomes=[outcome_to_proto(outcome) for outcome in outcomes],
                durable_through=seq_marks(state, name, outcomes),
            ),
        )

    async def WaitOutcome(
        self, request: session_pb2.WaitOutcomeRequest, context: Context
    ) -> session_pb2.WaitOutcomeResponse:
        """Wait for the final outcome of an event that was submitted."""
        self._renew(request.session, request.epoch)
        vcpu = vcpu_name("vcpu", request.vcpu)
        state = self._agent.state
        _check_submitted(state, request.session, vcpu, request.seq)
        outcome = find_outcome(state, request.session, request.epoch, vcpu, request.seq)
        if not outcome.final:
            wait = self._agent.outcomes.wait(request.session, vcpu, request.seq)
            try:
                outcome = await wait
            finally:
                wait.cancel()
        return session_pb2.WaitOutcomeResponse(header=header(state), outcome=outcome_to_proto(outcome))

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: Context
    ) -> session_pb2.ListSessionsResponse:
        """List the sessions that are alive, by name."""
        state = self._agent.state
        below = f"{vm_name('vm', request.vm)}/" if request.vm else ""
        wanted = (
            session
            for session in state.sessions.values()
            if not below or any(vcpu.startswith(below) for vcpu in session.vcpus)
        )
        sessions, token = page(
            wanted, lambda session: (session.name,), size=request.page_size, token=request.page_token
        )
        self._agent.history.wanted()
        return session_pb2.ListSessionsResponse(
            header=header(state), sessions=[session_to_proto(each) for each in sessions], next_page_token=token
        )

    def _renew(self, session: str, epoch: int) -> int:
        """Every message of a session renews its lease; returns it in nanoseconds."""
        lease_ns: int = self._agent.submit(KeepAlive(session=session_name("session", session), epoch=epoch))
        return lease_ns


async def _next(requests: AsyncIterator[session_pb2.AttachRequest]) -> session_pb2.AttachRequest | None:
    return await anext(requests, None)


def _open_session(request: session_pb2.OpenSessionRequest) -> OpenSession:
    if request.run_mode not in _RUN_MODES:
        raise field_invalid("run_mode", "IMPLICIT or EXPLICIT", request.run_mode)
    lease_ns = duration_ns("lease", request.lease)
    return OpenSession(
        client_name=text("client_name", request.client_name, longest=128),
        principal=current_principal.get().id,
        vcpus=tuple(vcpu_name(f"vcpus[{nr}]", name) for nr, name in enumerate(request.vcpus)),
        explicit=request.run_mode == session_pb2.RUN_MODE_EXPLICIT,
        lease_ns=max(lease_ns, LEASE_MIN_NS) if lease_ns else 0,
        required_capabilities=tuple(request.required_capabilities),
        request_id=request_id(request.request_id),
    )


def _check_submitted(state: HostState, session: str, vcpu: str, seq: int) -> None:
    """Refuse a number that was never submitted; whether the vCPU is the session's is the machine's to say."""
    record = state.sessions[session]
    if seq == 0:
        raise field_invalid("seq", "a number from 1", 0)
    if vcpu in record.vcpus:
        next_seq = state.side(record.vcpus[vcpu]).next_seq
        if seq >= next_seq:
            text_ = f"number {seq} of {vcpu!r} was never submitted; the next one is {next_seq}"
            raise Failure.because("SEQ_GAP", text_, vcpu=vcpu, seq=seq, expectedSeq=next_seq)
