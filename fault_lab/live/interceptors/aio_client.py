"""The interceptors of asynchronous clients: one for each kind of call, as grpc.aio asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

import grpc

from fault_lab.live.interceptors.calls import SEND, CallFaults, moment
from fault_lab.live.interceptors.steps import Double, Fail, Lose, Step, Wait, aio_error, aio_late

Details = grpc.aio.ClientCallDetails
#: gRPC's own: the details and the request, or an iterator of them; a call is what it is awaited for.
Continuation = Callable[[Any, Any], Any]

#: Copies under way, which nobody else holds on to.
_COPIES: Final[set[asyncio.Task[None]]] = set()


def aio_client_interceptors(calls: CallFaults) -> list[grpc.aio.ClientInterceptor]:
    """For ``grpc.aio.insecure_channel`` and its like: all four kinds of calls."""
    return [each(calls) for each in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]


class _Asking:
    """What all four have."""

    def __init__(self, calls: CallFaults) -> None:
        self._calls = calls

    async def _open(self, details: Details, until: float | None) -> int:
        """What comes before any traffic; returns how many copies are to be sent. Raises ``AioRpcError``."""
        copies = 0
        for step in self._calls.opening(SEND, _path(details), details.metadata):
            copies += step.copies if isinstance(step, Double) else await self._obey(step, until)
        return copies

    async def _obey(self, step: Step, until: float | None) -> int:
        """Wait, or raise. What would double an answer does nothing: it counts once."""
        match step:
            case Wait():
                if not await self._calls.wait(step, until):
                    raise aio_late()
            case Fail(code, details):
                raise aio_error(code, details)
            case Lose():
                await self._calls.wait(Wait(None), until)
                raise aio_late()
            case Double():
                pass
        return 0

    async def _answer(self, call: Any, path: str, until: float | None) -> Any:  # noqa: ANN401
        """Wait for the one reply; returns the call, whose caller has it then."""
        code: grpc.StatusCode = grpc.StatusCode.OK
        try:
            await call
        except grpc.aio.AioRpcError as error:
            code = error.code()
        for step in self._calls.answered(path, code):
            await self._obey(step, until)
        return call

    async def _answers(self, call: Any, path: str, until: float | None) -> AsyncIterator[Any]:  # noqa: ANN401
        """A stream of answers."""
        try:
            async for answer in call:
                for step in self._calls.at("rpc.client.receive", path):
                    await self._obey(step, until)
                yield answer
        finally:
            call.cancel()

    async def _sent(self, requests: Any, path: str, until: float | None) -> AsyncIterator[Any]:  # noqa: ANN401
        """The messages of a stream of requests, each of which may be late, or be lost with all behind it."""
        async for request in requests:
            for step in self._calls.at(SEND, path):
                match step:
                    case Wait():
                        await self._calls.wait(step, until)
                    case Lose():
                        # To end here would be to say that nothing more comes; the call's end cancels this.
                        await asyncio.get_running_loop().create_future()
                    case _:
                        pass
            yield request


class _UnaryUnary(_Asking, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Continuation, details: Details, request: Any) -> Any:  # noqa: ANN401
        """A request, a reply."""
        if self._calls.off:
            return await continuation(details, request)
        until = moment(details.timeout)
        for _ in range(await self._open(details, until)):
            _in_background(continuation, details, request)
        return await self._answer(await continuation(details, request), _path(details), until)


class _UnaryStream(_Asking, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Continuation, details: Details, request: Any) -> Any:  # noqa: ANN401
        """A request, a stream of answers."""
        if self._calls.off:
            return await continuation(details, request)
        until = moment(details.timeout)
        await self._open(details, until)
        return self._answers(await continuation(details, request), _path(details), until)


class _StreamUnary(_Asking, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Continuation, details: Details, requests: Any) -> Any:  # noqa: ANN401
        """A stream of requests, a reply."""
        if self._calls.off:
            return await continuation(details, requests)
        until = moment(details.timeout)
        await self._open(details, until)
        call = await continuation(details, self._sent(requests, _path(details), until))
        return await self._answer(call, _path(details), until)


class _StreamStream(_Asking, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Continuation, details: Details, requests: Any) -> Any:  # noqa: ANN401
        """A stream of requests, a stream of answers."""
        if self._calls.off:
            return await continuation(details, requests)
        until = moment(details.timeout)
        await self._open(details, until)
        call = await continuation(details, self._sent(requests, _path(details), until))
        return self._answers(call, _path(details), until)


def _in_background(continuation: Continuation, details: Details, request: Any) -> None:  # noqa: ANN401
    """The copy of a request: its answer is nobody's."""

    async def run() -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await (await continuation(details, request))

    task = asyncio.get_running_loop().create_task(run())
    _COPIES.add(task)
    task.add_done_callback(_COPIES.discard)


def _path(details: Details) -> str:
    method: str | bytes = details.method
    return method if isinstance(method, str) else method.decode()
