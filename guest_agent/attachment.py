"""One Attach stream, from its hello to its end: what is to be sent waits in a queue, what comes is iterated over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import grpc
from fpstate.v1 import session_pb2

from fpstated.link.trace import trace_metadata
from guest_agent.opening import SessionKey

if TYPE_CHECKING:
    from fpstate.v1.session_pb2_grpc import GuestSessionServiceAsyncStub


class Attachment:
    """A stream of the session `key` for all its vCPUs. `responses` may be iterated over once; its end is the stream's.

    The reader is whoever iterates. gRPC's own task takes from the queue and writes, so that nobody who is cancelled
    takes the stream along.
    """

    def __init__(self, stub: GuestSessionServiceAsyncStub, key: SessionKey) -> None:
        self._stub = stub
        self._outgoing: asyncio.Queue[session_pb2.AttachRequest | None] = asyncio.Queue()
        self._call: grpc.aio.StreamStreamCall[session_pb2.AttachRequest, session_pb2.AttachResponse] | None = None
        hello = session_pb2.AttachHello(session=key.name, epoch=key.epoch, done_runs=True)
        self.send(session_pb2.AttachRequest(hello=hello))

    def send(self, message: session_pb2.AttachRequest) -> None:
        """Write this when its turn comes."""
        self._outgoing.put_nowait(message)

    def end(self) -> None:
        """End the stream: whoever iterates over the responses finds it cancelled."""
        if self._call is not None:
            self._call.cancel()

    async def responses(self) -> AsyncGenerator[session_pb2.AttachResponse]:
        """Open the stream and yield what the host says.

        Raises:
            grpc.aio.AioRpcError: the stream ended with a status other than OK.
        """
        call = self._call = self._stub.Attach(self._requests(), metadata=trace_metadata())
        try:
            async for response in call:
                yield response
        finally:
            # A call that is only dropped lives on. Source: grpc/grpc issue 43462.
            call.cancel()
            # And so does gRPC's task that writes, where it was the host that ended the call.
            self._outgoing.put_nowait(None)

    async def _requests(self) -> AsyncGenerator[session_pb2.AttachRequest]:
        while (message := await self._outgoing.get()) is not None:
            yield message
