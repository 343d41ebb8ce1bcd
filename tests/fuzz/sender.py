"""Sends an input, whatever the kind of its method, and judges what came back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2

from tests.fuzz.inputs import CANCEL, CUT, FINISH, Input
from tests.fuzz.methods import response_class
from tests.fuzz.tour import IDENTITIES
from tests.fuzz.vocabulary import Vocabulary
from tests.live.host import LiveHost
from tests.service.world import error_info

#: What may wait for something: for a decision, or for news.
_WAITS: Final = ("Attach", "SubmitEvents", "WaitOutcome", "WatchExits", "Watch", "WatchFaults", "ServerReflectionInfo")
_WAIT_S: Final = 0.7
#: Anything else has to answer long before this, also on a machine that is busy.
_ANSWER_S: Final = 60.0
_BUGS: Final = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAVAILABLE,
)
#: What gRPC's core says by itself; the last where a client writes on after the host has ended the call.
_CORES_OWN: Final = ("Received message larger than max", "Method not found", "Internal error from Core")


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended: its code, what it says, and why that is a bug of the host, if it is one."""

    code: grpc.StatusCode
    text: str
    crash: str = ""


class Sender:
    """A lane: its own connections, one for each role. What it hears goes into the vocabulary."""

    def __init__(self, host: LiveHost, vocabulary: Vocabulary) -> None:
        self._host = host
        self._vocabulary = vocabulary
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            await channel.close()

    def _channel(self, role: str) -> grpc.aio.Channel:
        if role not in self._channels:
            self._channels[role] = self._host.channel(IDENTITIES[role])
        return self._channels[role]

    async def send(self, sent: Input) -> Answer:
        """Send it and wait until it is over."""
        if sent.ending == CUT:
            channel = self._host.channel(IDENTITIES[sent.role])
            try:
                return await self._send(channel, sent)
            finally:
                await channel.close()
        return await self._send(self._channel(sent.role), sent)

    async def _send(self, channel: grpc.aio.Channel, sent: Input) -> Answer:
        # A call without a message is not answered by gRPC for asyncio, before its deadline: docs/findings.md.
        waits = sent.path.rpartition("/")[2] in _WAITS or not sent.messages
        call: Any = channel.stream_stream(sent.path)(timeout=_WAIT_S if waits else _ANSWER_S)
        bad = ""
        try:
            for message in sent.messages:
                await call.write(message)
            if sent.ending == FINISH:
                await call.done_writing()
            reads = 0
            while sent.ending == FINISH or reads < sent.reads:
                response = await call.read()
                if response is grpc.aio.EOF:
                    break
                bad = bad or self._hear(sent.path, response)
                reads += 1
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the status says it
        finally:
            if sent.ending == CANCEL:
                call.cancel()
            if sent.ending == CUT and not call.done():
                await channel.close()
        code, text = await call.code(), await call.details() or ""
        trailers = await call.trailing_metadata() or ()
        return Answer(code, text, bad or _crash(sent, code, text, tuple(trailers), waits=waits))

    def _hear(self, path: str, raw: bytes) -> str:
        """Learn from a response; returns what is wrong with it."""
        try:
            message = response_class(path).FromString(raw)
        except DecodeError as error:
            return f"a response that is none: {error}"
        self._vocabulary.learn(message)
        for outcome in _outcomes(message):
            if outcome.rejected.code in (code_pb2.INTERNAL, code_pb2.UNKNOWN, code_pb2.DATA_LOSS):
                return f"an event rejected with {outcome.rejected.message}"
        return ""


def _outcomes(message: Any) -> list[Any]:  # noqa: ANN401 -- any response
    fields = message.DESCRIPTOR.fields_by_name
    if "outcomes" in fields:
        return list(message.outcomes.outcomes)
    return [message.outcome] if "outcome" in fields else []


def _crash(sent: Input, code: grpc.StatusCode, text: str, trailers: tuple[Any, ...], *, waits: bool) -> str:
    """Why a status is a bug of the host; empty where it is none."""
    if sent.ending == CUT or code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
        return ""
    if any(own in text for own in _CORES_OWN):
        return ""
    if code in _BUGS:
        return f"{code.name}: {text}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and "Deadline Exceeded" in text:
        return "" if waits else f"no answer within {_ANSWER_S:g} s"
    if not sent.path.startswith("/fpstate."):
        return ""
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), text)
    try:
        error_info(error)
    except AssertionError as bare:
        return f"{code.name} without its one ErrorInfo ({bare}): {text}"
    return ""
