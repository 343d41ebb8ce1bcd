"""The layer that gives up clients which take nothing: a stream whose message is not taken for long is ended.

A message that gRPC's window has no room for waits in its stream's ``yield``. Nothing that is put into the stream's own
queue is heard there, so whoever stops reading for good would keep its place among the streams, and what its servicer
holds, for as long as its connection lives.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any
from weakref import WeakSet

import grpc
from grpc_status import rpc_status

from host_agent.service.errors import Failure, status_of
from host_agent.service.layers import Behaviour, Context, Layer, Method

_log = logging.getLogger(__name__)


class PatienceLayer(Layer):
    """Ends a stream whose client has taken no message for ``patience_s`` seconds, or a quarter more."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        #: Since when each stream has waited for its client, by the task that writes it.
        self._waiting: dict[asyncio.Task[Any], tuple[float, str]] = {}
        self._given_up: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._timer: asyncio.TimerHandle | None = None
        text = f"no message was taken for {patience_s:g} s"
        self._status = status_of(
            Failure.because("LIMIT_REACHED", text, limit="stream_patience_seconds", maximum=f"{patience_s:g}")
        )

    def wrap(self, behaviour: Behaviour, method: Method) -> Behaviour:
        """The behaviour with a watch on each message that goes out; the one of a unary call is gRPC's own."""
        return self._stream(behaviour, method) if inspect.isasyncgenfunction(behaviour) else behaviour

    def _stream(self, behaviour: Behaviour, method: Method) -> Behaviour:
        async def answer(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
            task, clock = asyncio.current_task(), asyncio.get_running_loop().time
            assert task is not None
            try:
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        self._waiting[task] = (clock(), method.path)
                        self._look_later()
                        try:
                            yield response
                        finally:
                            del self._waiting[task]
            except GeneratorExit:  # gRPC's write was cancelled, and the generator is let go of
                if task in self._given_up:
                    await self._say_so(context)
                raise

        return answer

    async def _say_so(self, context: Context) -> None:
        """The status, which waits in gRPC behind the message for the client to read. By now nothing else is kept."""
        with suppress(grpc.aio.AbortError):
            await context.abort_with_status(rpc_status.to_status(self._status))

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._patience_s / 4, self._look)

    def _look(self) -> None:
        self._timer = None
        late = asyncio.get_running_loop().time() - self._patience_s
        for task, (since, path) in self._waiting.items():
            if since < late:
                _log.warning("%s: the client has taken no message for %g s and is given up", path, self._patience_s)
                self._given_up.add(task)
                task.cancel()
        if self._waiting:
            self._look_later()
