"""The interceptor of servers with threads. A host agent asks these points itself: it has no need of this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc

from fault_lab.live.interceptors.calls import SERVER_RECEIVE, SERVER_REPLY, CallFaults, moment
from fault_lab.live.interceptors.steps import Fail, Step, Wait

if TYPE_CHECKING:  # generic to the type checker alone
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler


def server_interceptor(calls: CallFaults) -> grpc.ServerInterceptor:
    """For ``grpc.server``: all four kinds of calls."""
    return _ServerInterceptor(calls)


class _ServerInterceptor(grpc.ServerInterceptor):
    """Asks ``rpc.server.receive`` before the servicer's method, and ``rpc.server.reply`` when it has its one reply."""

    def __init__(self, calls: CallFaults) -> None:
        self._calls = calls

    def intercept_service(
        self, continuation: Callable[[Any], Handler | None], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:  # noqa: ANN401
        """The method's handler with both points around it."""
        handler = continuation(handler_call_details)
        if self._calls.off or handler is None:
            return handler
        path: str = handler_call_details.method
        wrap = self._streaming if handler.response_streaming else self._unary
        return rewrapped(handler, lambda behaviour: wrap(behaviour, path))

    def _unary(self, behaviour: Callable[..., Any], path: str) -> Callable[..., Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ANN401
            self._open(path, context)
            reply = behaviour(request, context)
            self._obey(self._calls.at(SERVER_REPLY, path), context)
            return reply

        return answer

    def _streaming(self, behaviour: Callable[..., Any], path: str) -> Callable[..., Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: ANN401
            self._open(path, context)
            yield from behaviour(request, context)

        return answer

    def _open(self, path: str, context: grpc.ServicerContext) -> None:
        self._obey(self._calls.opening(SERVER_RECEIVE, path, context.invocation_metadata()), context)

    def _obey(self, steps: list[Step], context: grpc.ServicerContext) -> None:
        until = moment(context.time_remaining())
        for step in steps:
            match step:
                case Wait():
                    self._calls.block(step, until)
                case Fail(code, details):
                    context.abort(code, details)
                case _:
                    raise AssertionError("a server's points take a status or a delay")


def rewrapped(handler: Handler, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:  # noqa: ANN401
    """A handler of the same kind and the same messages with ``wrap`` around its behaviour."""
    makers: dict[tuple[bool, bool], tuple[Any, Any]] = {
        (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
        (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
        (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
        (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
    }
    behaviour, make = makers[handler.request_streaming, handler.response_streaming]
    return make(
        wrap(behaviour),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
