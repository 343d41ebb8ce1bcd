"""The layers around every call, and their order: the one place where both are said.

    Patience   outermost, where messages wait for a client that does not read
    Trace      around the rest, so that whatever the others log has the call's trace
    Metrics    counts with the code that the caller gets
    Error      what the inner ones raise becomes one google.rpc.Status
    Decode     bytes that are no message of the method's type are refused
    Release    what comes out waits until what it may know of is durable: answers, messages, refusals of the inner ones
    Access     who calls, and does its role have the call?
    Limit      has it calls left?
    Fault      innermost, on a host that is broken on purpose: the call fails or takes long, before or after

They are put around a method when its service is added to the server, and not with every call.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, cast

import grpc

if TYPE_CHECKING:  # generic to the type checker alone
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Context = grpc.aio.ServicerContext
    Handler = grpc.RpcMethodHandler

#: A servicer's method: takes a request, or an iterator of them, and is a coroutine or an asynchronous generator.
Behaviour = Callable[[Any, Context], Any]
#: ``Layer.leave`` of some layer.
Leave = Callable[..., None]


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


class Layer:
    """Something around each call: a subclass says what in ``enter`` and ``leave``, or wraps the behaviour in ``wrap``.

    Two plain functions and not a context manager, which would cost every call of every layer two microseconds.
    """

    def enter(self, method: Method, request: Any, context: Context) -> tuple[Any, Any]:  # noqa: ANN401
        """Before the servicer's method. Returns the request to go on with, and what ``leave`` wants to have."""
        raise NotImplementedError

    def leave(self, method: Method, context: Context, kept: Any, *, cancelled: bool) -> None:  # noqa: ANN401
        """After it, however it ended; not called where ``enter`` has raised."""

    def wrap(self, behaviour: Behaviour, method: Method) -> Behaviour:
        """The behaviour with ``enter`` and ``leave`` around it."""
        return _around((self,), behaviour, method)


def _around(layers: Sequence[Layer], behaviour: Behaviour, method: Method) -> Behaviour:
    """The behaviour with ``enter`` and ``leave`` of layers around it, outermost first, as one function."""
    if inspect.isasyncgenfunction(behaviour):
        return _stream(layers, behaviour, method)
    return _coroutine(layers, behaviour, method)


def _coroutine(layers: Sequence[Layer], behaviour: Behaviour, method: Method) -> Behaviour:
    around = [(layer.enter, layer.leave) for layer in layers]

    async def answer(request: Any, context: Context) -> Any:  # noqa: ANN401 -- each method has its own types
        entered: list[tuple[Leave, Any]] = []
        cancelled = False
        try:
            for enter, leave in around:
                request, kept = enter(method, request, context)
                entered.append((leave, kept))
            return await behaviour(request, context)
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            for leave, kept in reversed(entered):
                leave(method, context, kept, cancelled=cancelled)

    return answer


def _stream(layers: Sequence[Layer], behaviour: Behaviour, method: Method) -> Behaviour:
    async def answer(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
        entered: list[tuple[Leave, Any]] = []
        cancelled = False
        try:
            for layer in layers:
                request, kept = layer.enter(method, request, context)
                entered.append((layer.leave, kept))
            # Closing the inner generator here, not whenever it is collected, is what detaches a stream in time.
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response
        except (asyncio.CancelledError, GeneratorExit):
            cancelled = True
            raise
        finally:
            for leave, kept in reversed(entered):
                leave(method, context, kept, cancelled=cancelled)

    return answer


def layered(
    server: grpc.aio.Server, *layers: Layer, deserializer: Callable[[Any], Any] | None = None
) -> grpc.aio.Server:
    """What services are added to, so that their methods are inside the layers, outermost first.

    ``deserializer`` makes a method's deserializer into the one that is used: where ``DecodeLayer`` is among the layers,
    one that never raises.
    """
    made = LayeredServer(server, *layers, deserializer=deserializer)
    return cast("grpc.aio.Server", made)  # it has of a server what generated code asks for


class LayeredServer:
    """A server as its services see it while they are added: each of their methods goes in inside all layers.

    Outermost first. An interceptor of gRPC's would be asked with every call, which costs it 8 microseconds.
    """

    def __init__(
        self, server: grpc.aio.Server, *layers: Layer, deserializer: Callable[[Any], Any] | None = None
    ) -> None:
        self._server = server
        self._layers = layers
        self._deserializer = deserializer

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Nothing: generated code adds the same methods by their names as well, which is how they are found."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """Add a service's methods."""
        wrapped = {name: self._wrap(each, f"/{service_name}/{name}") for name, each in method_handlers.items()}
        self._server.add_registered_method_handlers(service_name, wrapped)

    def _wrap(self, handler: Handler, path: str) -> Handler:
        method = Method(path, handler.request_streaming, handler.response_streaming)
        behaviour = behaviour_of(handler)
        # Neighbours that only enter and leave are one function around the call: each would cost it a coroutine.
        for plain, layers in groupby(reversed(self._layers), lambda layer: type(layer).wrap is Layer.wrap):
            if plain:
                behaviour = _around(tuple(layers)[::-1], behaviour, method)
            else:
                behaviour = reduce(lambda inner, layer: layer.wrap(inner, method), layers, behaviour)
        return rewrapped(handler, behaviour, self._deserializer)


def behaviour_of(handler: Handler) -> Behaviour:
    """The one of its four functions that a handler has."""
    found: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    assert found is not None, "a handler has a behaviour"
    behaviour: Behaviour = found
    return behaviour


def rewrapped(handler: Handler, behaviour: Behaviour, deserializer: Callable[[Any], Any] | None = None) -> Handler:
    """A handler of the same kind and the same messages with another behaviour."""
    read = handler.request_deserializer
    makers: dict[tuple[bool, bool], Any] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    made: Handler = makers[handler.request_streaming, handler.response_streaming](
        behaviour,
        request_deserializer=deserializer(read) if deserializer is not None and read is not None else read,
        response_serializer=handler.response_serializer,
    )
    return made
