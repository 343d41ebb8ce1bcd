"""The link of an asyncio session to its host: opens the session, stays attached, comes back when it is cut off."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from contextlib import aclosing, suppress

import grpc
from fpstate.v1 import session_pb2
from fpstate.v1.session_pb2_grpc import GuestSessionServiceStub

from fpstated.link.trace import trace_metadata
from guest_agent.attachment import Attachment
from guest_agent.channel import connect_async
from guest_agent.error import HostError, host_error
from guest_agent.moving import HOPS_MAX, goes_with_its_vm
from guest_agent.opening import Opened, SessionKey, SessionSpec, opened_from_proto
from guest_agent.outcome import Outcome, Refusal
from guest_agent.recovery import Patience, Remedy, remedy
from guest_agent.wait import SessionLost
from guest_agent.wire import outcome_from_proto

CALL_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0


class AsyncLink:
    """The link of one session; the `AsyncSession` that owns it is told each message of the stream.

    Attributes:
        opened: what the host last answered to OpenSession.
        resume_target: where a draining host wants its clients to go; empty if it has not said.
        moves: how often it has gone to another host.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        spec: SessionSpec,
        opened: Opened,
        *,
        owns_channel: bool,
        reconnect_s: float,
        connect_to: Callable[[str], grpc.aio.Channel] = connect_async,
    ) -> None:
        self._channel = channel
        self._spec = spec
        self._owns_channel = owns_channel
        self._stub = GuestSessionServiceStub(channel)
        self._patience = Patience(total_s=reconnect_s)
        self._attachment: Attachment | None = None
        self._connect_to = connect_to
        self._moving_to = ""
        self.opened = opened
        self.resume_target = ""
        self.moves = 0

    @property
    def key(self) -> SessionKey:
        """Name and epoch now."""
        return self.opened.key

    @property
    def attached(self) -> bool:
        """Whether there is a stream that the host has accepted."""
        return self._attachment is not None

    def send(self, message: session_pb2.AttachRequest) -> None:
        """Write a message on the stream. Without one it is dropped: what matters is sent again on the next."""
        if self._attachment is not None:
            self._attachment.send(message)

    async def run(self, take: Callable[[session_pb2.AttachResponse], None]) -> None:
        """Be attached, again and again, and hand over each message; returns never.

        Raises:
            HostError: the host refused, or was not reached for `reconnect_s` seconds.
            SessionLost: the channel was closed by its owner.
        """
        try:
            while True:
                await self._recover(await self._stay_attached(take))
        except grpc.aio.UsageError as error:  # which gRPC says of a closed channel
            raise SessionLost("its channel was closed by its owner") from error

    async def wait_outcome(self, vcpu: str, seq: int) -> Outcome | None:
        """Ask for a final outcome that no stream will bring; None if the host could not be asked."""
        key = self.key
        request = session_pb2.WaitOutcomeRequest(session=key.name, epoch=key.epoch, vcpu=vcpu, seq=seq)
        try:
            response = await self._stub.WaitOutcome(request, timeout=CALL_TIMEOUT_S, metadata=trace_metadata())
        except (grpc.RpcError, grpc.aio.UsageError):
            return None
        return outcome_from_proto(response.outcome)

    def move(self, target: str) -> None:
        """Go on at `target`, where the VM lives now: the stream ends, and the next one is there."""
        if not self._moving_to:
            self._moving_to = target
            if self._attachment is not None:
                self._attachment.end()

    async def close(self) -> None:
        """Close the session and the channel; what the host says to it is not asked."""
        request = session_pb2.CloseSessionRequest(
            session=self.key.name, epoch=self.key.epoch, request_id=str(uuid.uuid4())
        )
        with suppress(grpc.RpcError, grpc.aio.UsageError):
            await self._stub.CloseSession(request, timeout=CLOSE_TIMEOUT_S, metadata=trace_metadata())
        if self._owns_channel:
            await self._channel.close()

    # ---- attached ----------------------------------------------------------------------------------------------------

    async def _stay_attached(self, take: Callable[[session_pb2.AttachResponse], None]) -> HostError:
        """Attach and hand over what comes until the stream ends; returns what ended it."""
        attachment = Attachment(self._stub, self.key)
        try:
            async with aclosing(attachment.responses()) as responses:
                async for response in responses:
                    if response.HasField("attached"):
                        self._patience.reset()
                        self._attachment = attachment
                    take(response)
        except grpc.RpcError as error:
            return _what_ended_it(host_error(error))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # this task is what is cancelled; without that it is the host that has cancelled the call
        finally:
            self._attachment = None
        return HostError(Refusal("UNAVAILABLE", "the host has ended the stream"))

    # ---- cut off -----------------------------------------------------------------------------------------------------

    async def _recover(self, error: HostError) -> None:
        """Do what makes attaching again worth it, or raise `error`."""
        if self._moving_to:
            target, self._moving_to = self._moving_to, ""
            await self._move(target)
            return
        match remedy(error.refusal):
            case Remedy.AGAIN:
                pass
            case Remedy.MOVE if goes_with_its_vm(self._spec.vcpus):
                await self._move(error.metadata["target"])
            case Remedy.MOVE:
                raise error
            case Remedy.LATER if self.resume_target and self._owns_channel:
                target, self.resume_target = self.resume_target, ""
                await self._move(target)
            case Remedy.LATER:
                await self._pause(error)
            case Remedy.REOPEN:
                await self._reopen()
            case Remedy.NONE:
                raise error

    async def _pause(self, error: HostError) -> None:
        if error.reason == "MIGRATION_IN_PROGRESS":
            self._patience.reset()  # somebody is there, and will not let the VM stand still for ever
        pause_s = self._patience.pause_s(error.retry_delay_s)
        if pause_s is None:
            raise error
        await asyncio.sleep(pause_s)

    async def _reopen(self) -> None:
        """Open a new session where the host has ended the old one; a host that is not there is tried again."""
        while True:
            try:
                self.opened = await open_on(self._channel, self._spec)
            except HostError as refused:
                if remedy(refused.refusal) not in (Remedy.AGAIN, Remedy.LATER):
                    raise
                await self._pause(refused)
            else:
                return

    async def _move(self, target: str) -> None:
        """Go on at another host: that a draining one has named, or where the VM is, which may have moved on."""
        for _hop in range(HOPS_MAX):
            if self._owns_channel:
                await self._channel.close()
            self._channel, self._owns_channel = self._connect_to(target), True
            self._stub = GuestSessionServiceStub(self._channel)
            self.moves += 1
            try:
                await self._reopen()
            except HostError as error:
                if remedy(error.refusal) is not Remedy.MOVE:
                    raise
                target = error.metadata["target"]
            else:
                return
        raise SessionLost(f"the VM is never where it is said to be, at last at {target}")


def _what_ended_it(error: HostError) -> HostError:
    """Take gRPC's own INTERNAL for the lost connection that it is; a host's comes with a reason.

    A write that meets a dead connection ends the call so. Source: grpc/aio/_call.py, _StreamRequestMixin._write().
    """
    if error.refusal.code == "INTERNAL" and not error.reason:
        return HostError(Refusal("UNAVAILABLE", f"the stream was cut: {error.refusal.message}"))
    return error


async def open_on(channel: grpc.aio.Channel, spec: SessionSpec) -> Opened:
    """Open a session.

    Raises:
        HostError: the host refused, or was not reached.
    """
    try:
        stub = GuestSessionServiceStub(channel)
        response = await stub.OpenSession(spec.to_proto(), timeout=CALL_TIMEOUT_S, metadata=trace_metadata())
    except grpc.RpcError as error:
        raise host_error(error) from error
    return opened_from_proto(response)
