"""The interceptor of asynchronous servers. A host agent asks these points itself: it has no need of this one."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from fault_lab.live.interceptors.calls import SERVER_RECEIVE, SERVER_REPLY, CallFaults, moment
from fault_lab.live.interceptors.server import Handler, rewrapped
from fault_lab.live.interceptors.steps import Fail, Step, Wait


def aio_server_interceptor(calls: CallFaults) -> grpc.aio.ServerInterceptor:
    """For ``grpc.aio.server``: methods are coroutines, or asynchronous generators where they stream."""
    return _AioServerInterceptor(calls)


class _AioServerInterceptor(grpc.aio.ServerInterceptor):
    """Asks ``rpc.server.receive`` before the servicer's method, and ``rpc.server.reply`` when it has its one reply."""

    def __init__(self, calls: CallFaults) -> None:
        self._calls = calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401
        """The method's handler with both points around it."""
        handler = await continuation(handler_call_details)
        if self._calls.off or handler is None:
            return handler
        path: str = handler_call_details.method
        return rewrapped(handler, lambda behaviour: self._around(behaviour, path))

    def _around(self, behaviour: Callable[..., Any], path: str) -> Callable[..., Any]:
        async def reply(request: Any, context: Any) -> Any:  # noqa: ANN401
            await self._open(path, context)
            answer = await behaviour(request, context)
            await self._obey(self._calls.at(SERVER_REPLY, path), context)
            return answer

        async def messages(request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401
            await self._open(path, context)
            async with aclosing(behaviour(request, context)) as answers:
                async for answer in answers:
                    yield answer

        if inspect.isasyncgenfunction(behaviour):
            return messages
        return reply

    async def _open(self, path: str, context: Any) -> None:  # noqa: ANN401
        await self._obey(self._calls.opening(SERVER_RECEIVE, path, context.invocation_metadata()), context)

    async def _obey(self, steps: list[Step], context: Any) -> None:  # noqa: ANN401
        until = moment(context.time_remaining())
        for step in steps:
            match step:
                case Wait():
                    await self._calls.wait(step, until)
                case Fail(code, details):
                    await context.abort(code, details)
                case _:
                    raise AssertionError("a server's points take a status or a delay")
