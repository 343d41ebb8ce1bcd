"""The layers around every call, and their order: the one place where both are said.

    Trace      outermost, so that whatever the others log has the call's trace
    Metrics    counts with the code that the caller gets
    Error      what the inner ones raise becomes one google.rpc.Status
    Access     who calls, and does its role have the call?
    Limit      has it calls left?
    Unbuilt    innermost: a call that is not there is refused to those alone who may know

A layer is a context manager around the call. Wrapping costs once per method, not per call: gRPC hands out one handler
per method, and so do the layers.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

if TYPE_CHECKING:  # generic to the type checker alone
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Context = grpc.aio.ServicerContext
    Handler = grpc.RpcMethodHandler

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]
#: A servicer's method: takes a request, or an iterator of them, and is a coroutine or an asynchronous generator.
Behaviour = Callable[[Any, Context], Any]


@dataclass(frozen=True, slots=True)
class Method:
    """A method as gRPC spells it, `/package.Service/Method`, and which of its sides are streams."""

    path: str
    requests: bool
    responses: bool

    @property
    def service(self) -> str:
        """`package.Service`."""
        return self.path.split("/")[1]

    @property
    def name(self) -> str:
        """`Method`."""
        return self.path.split("/")[2]

    @property
    def kind(self) -> str:
        """As gRPC's own metrics have it: unary, client_stream, server_stream, bidi_stream."""
        return _KINDS[self.requests, self.responses]

    @property
    def is_stream(self) -> bool:
        """Whether it may last for hours."""
        return self.requests or self.responses


_KINDS: Final = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}


class Layer(grpc.aio.ServerInterceptor):
    """Something around each call. A subclass says what in ``around``, or wraps the behaviour itself in ``wrap``."""

    def __init__(self) -> None:
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    def around(self, method: Method, request: Any, context: Context) -> AbstractContextManager[Any]:  # noqa: ANN401
        """Enter before the servicer's method, leave after it. Yields the request to go on with."""
        raise NotImplementedError

    def wrap(self, behaviour: Behaviour, method: Method) -> Behaviour:
        """The behaviour with ``around`` around it."""
        if inspect.isasyncgenfunction(behaviour):
            return self._stream(behaviour, method)
        return self._coroutine(behaviour, method)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the inner handler, wrapped; the same one for the same handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        path = str(handler_call_details.method)
        known = self._wrapped.get(path)
        if known is None or known[0] is not handler:
            method = Method(path, handler.request_streaming, handler.response_streaming)
            known = self._wrapped[path] = (handler, rewrapped(handler, self.wrap(behaviour_of(handler), method)))
        return known[1]

    def _coroutine(self, behaviour: Behaviour, method: Method) -> Behaviour:
        async def answer(request: Any, context: Context) -> Any:  # noqa: ANN401 -- each method has its own types
            with self.around(method, request, context) as admitted:
                return await behaviour(admitted, context)

        return answer

    def _stream(self, behaviour: Behaviour, method: Method) -> Behaviour:
        async def answer(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
            with self.around(method, request, context) as admitted:
                # Closing the inner generator here, not whenever it is collected, is what detaches a stream in time.
                async with aclosing(behaviour(admitted, context)) as responses:
                    async for response in responses:
                        yield response

        return answer


def behaviour_of(handler: Handler) -> Behaviour:
    """The one of its four functions that a handler has."""
    found: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    assert found is not None, "a handler has a behaviour"
    behaviour: Behaviour = found
    return behaviour


def rewrapped(handler: Handler, behaviour: Behaviour) -> Handler:
    """A handler of the same kind and the same messages with another behaviour."""
    makers: dict[tuple[bool, bool], Any] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    made: Handler = makers[handler.request_streaming, handler.response_streaming](
        behaviour,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made
