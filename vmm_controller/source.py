"""Where exits come from: the list, which is the truth, and then the stream of changes from the list's revision on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

import grpc
from fpstate.v1 import exit_pb2 as pb
from fpstate.v1 import exit_pb2_grpc as pb_grpc

from fpstated.link.trace import trace_metadata
from vmm_controller.error import CallError, typed_errors
from vmm_controller.exit_proto import exit_from_proto
from vmm_controller.policy import ExitView

_UNRESOLVED: Final = (pb.EXIT_STATE_OPEN, pb.EXIT_STATE_APPLYING, pb.EXIT_STATE_PAUSED)


@dataclass(frozen=True, slots=True)
class Listed:
    """Every unresolved exit of the scope, true as of `revision` of the host's."""

    exits: list[ExitView]
    revision: int
    boot_id: str


class ExitSource:
    """The exits of one scope: `vms/{vm}`, or empty for all."""

    def __init__(self, stub: pb_grpc.ExitServiceAsyncStub, scope: str, *, call_timeout_s: float) -> None:
        self._stub = stub
        self._scope = scope
        self._timeout_s = call_timeout_s

    async def list(self) -> Listed:
        """Return every unresolved exit. Raises CallError.

        The revision is that of the first page: what changed while the other pages were read comes again on the stream.
        """
        exits: list[ExitView] = []
        first, token = None, ""
        while first is None or token:
            page = await self._page(token)
            first = first or page.header
            exits += map(exit_from_proto, page.exits)
            token = page.next_page_token
        return Listed(exits, first.revision, first.boot_id)

    async def _page(self, token: str) -> pb.ListExitsResponse:
        request = pb.ListExitsRequest(vm=self._scope, states=_UNRESOLVED, page_token=token)
        with typed_errors():
            return await self._stub.ListExits(request, timeout=self._timeout_s, metadata=trace_metadata())

    async def get(self, name: str) -> ExitView:
        """Return one exit as it is. Raises CallError."""
        with typed_errors():
            request = pb.GetExitRequest(name=name)
            reply = await self._stub.GetExit(request, timeout=self._timeout_s, metadata=trace_metadata())
        return exit_from_proto(reply.exit)

    async def boot_id(self) -> str:
        """Return which start of the host this is. Raises CallError."""
        with typed_errors():
            request = pb.ListExitsRequest(page_size=1)
            reply = await self._stub.ListExits(request, timeout=self._timeout_s, metadata=trace_metadata())
        return reply.header.boot_id

    async def changes(self, *, from_revision: int) -> AsyncGenerator[ExitView, None]:
        """Yield each change until the host ends the stream; close the iterator (`aclosing`) to end it before.

        Raises CallError when the stream breaks.
        """
        request = pb.WatchExitsRequest(vm=self._scope, from_revision=from_revision)
        call = self._stub.WatchExits(request, metadata=trace_metadata())
        try:
            with typed_errors():
                async for message in call:
                    if message.WhichOneof("body") == "exit":
                        yield exit_from_proto(message.exit)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not this task is cancelled but its call, by whoever closes the channel: silence would look like no news.
            raise CallError(grpc.StatusCode.CANCELLED, "the stream was cancelled") from error
        finally:
            # An abandoned call is never collected: grpc/grpc#43462.
            call.cancel()
