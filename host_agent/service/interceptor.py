"""What stands around every call of ours: errors become one google.rpc.Status, and no unary call runs for ever.

Four things can come out of a servicer's method, and each has its answer:

    Refused, Failure, FieldError      the caller's mistake: the status of the table
    CancelledError, the call's own    the client has gone or its deadline is over: passed on
    CancelledError of something else  a bug: without an answer the client would hang until its deadline
    anything else                     a bug: logged with its traceback; the caller hears INTERNAL and no more
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from grpc_status import rpc_status

from host_agent.service.errors import Failure, failure_of, status_of

_log = logging.getLogger(__name__)

if TYPE_CHECKING:  # generic to the type checker alone
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Context = grpc.aio.ServicerContext
    Handler = grpc.RpcMethodHandler

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]
_Unary = Callable[[Any, Context], Awaitable[Any]]
_Stream = Callable[[Any, Context], AsyncIterator[Any]]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of ``fpstate.`` packages; health and reflection have their own ways.

    ``deadline_s`` is given to a unary call that came without one.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the handler, wrapped by its kind."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/fpstate."):
            return handler
        return self._wrapped(handler, method)

    def _wrapped(self, handler: Handler, method: str) -> Handler:
        kinds: dict[tuple[bool, bool], tuple[Any, Any]] = {
            (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
            (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
        }
        make, call = kinds[handler.request_streaming, handler.response_streaming]
        wrapped = _stream(call, method) if handler.response_streaming else _unary(call, method, self._deadline_s)
        made: Handler = make(
            wrapped,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return made


def _unary(call: _Unary, method: str, deadline_s: float) -> _Unary:
    async def answer(request: Any, context: Context) -> Any:  # noqa: ANN401 -- each method has its own types
        limit = asyncio.timeout(deadline_s if _has_no_deadline(context) else None)
        try:
            async with limit:
                return await call(request, context)
        except TimeoutError as error:
            if limit.expired():
                await _abort(context, _deadline_reached(method, deadline_s))
            await _abort(context, _unforeseen(error, method))
        except asyncio.CancelledError as error:
            await _abort_stray(context, error, method)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the caller gets one status for it
            await _abort(context, _unforeseen(error, method))

    return answer


def _stream(call: _Stream, method: str) -> _Stream:
    async def answer(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
        responses = call(request, context)
        try:
            # Closing the inner generator here, not whenever it is collected, is what detaches a stream in time.
            async with aclosing(responses):  # type: ignore[type-var]  # every servicer of ours is a generator
                async for response in responses:
                    yield response
        except asyncio.CancelledError as error:
            await _abort_stray(context, error, method)
        except Exception as error:  # noqa: BLE001
            await _abort(context, _unforeseen(error, method))

    return answer


def _has_no_deadline(context: Context) -> bool:
    remaining: float | None = context.time_remaining()
    return remaining is None


def _deadline_reached(method: str, deadline_s: float) -> Failure:
    text = f"{method} came without a deadline, and the host's {deadline_s:g} s are over"
    return Failure.because("DEADLINE_REACHED", text, method=method)


def _unforeseen(error: Exception, method: str) -> Exception:
    """A refusal as it is; else log what happened and let the caller know that something did."""
    if failure_of(error) is None:
        _log.error("%s failed", method, exc_info=error)
    return error


async def _abort_stray(context: Context, error: asyncio.CancelledError, method: str) -> NoReturn:
    """Pass on the cancellation of the call itself; one that another task's future brought in ends it CANCELLED."""
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise error
    _log.error("%s: something it waited for was cancelled", method, exc_info=error)
    await context.abort(grpc.StatusCode.CANCELLED, "the host gave the call up")
    raise AssertionError("abort returns to nobody")


async def _abort(context: Context, error: Exception) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    failure = failure_of(error)
    if failure is None:
        await context.abort(grpc.StatusCode.INTERNAL, "a bug of the host; its log has the details")
    else:
        await context.abort_with_status(rpc_status.to_status(status_of(failure)))
    raise AssertionError("abort returns to nobody")
