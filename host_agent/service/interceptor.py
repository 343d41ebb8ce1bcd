"""The layer in which errors become one google.rpc.Status, and which lets no unary call run for ever.

Five things can come out of a servicer's method, and each has its answer:

    Refused, Failure, FieldError      the caller's mistake: the status of the table
    CancelledError, the call's own    the client has gone or its deadline is over: passed on
    CancelledError of something else  a bug: without an answer the client would hang until its deadline
    grpc.aio.InternalError            gRPC could not send: the client has gone, as if it had cancelled
    anything else                     a bug: logged with its traceback; the caller hears INTERNAL and no more
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from grpc_status import rpc_status

from host_agent.service.errors import Failure, failure_of, status_of
from host_agent.service.layers import Behaviour, Context, Layer, Method

_log = logging.getLogger(__name__)


class ErrorInterceptor(Layer):
    """Wraps every method. ``deadline_s`` is given to a unary call that came without one."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s

    def wrap(self, behaviour: Behaviour, method: Method) -> Behaviour:
        """The behaviour with its errors translated."""
        if inspect.isasyncgenfunction(behaviour):
            return _stream(behaviour, method.path)
        return _coroutine(behaviour, method.path, None if method.is_stream else self._deadline_s)


def _coroutine(call: Behaviour, method: str, deadline_s: float | None) -> Behaviour:
    async def answer(request: Any, context: Context) -> Any:  # noqa: ANN401 -- each method has its own types
        limit: asyncio.Timeout | None = None
        try:
            if deadline_s is None or not _has_no_deadline(context):
                return await call(request, context)
            async with asyncio.timeout(deadline_s) as limit:
                return await call(request, context)
        except TimeoutError as error:
            if limit is not None and limit.expired():
                await _abort(context, _deadline_reached(method, deadline_s or 0.0))
            await _abort(context, _unforeseen(error, method))
        except asyncio.CancelledError as error:
            await _abort_stray(context, error, method)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the caller gets one status for it
            await _abort(context, _unforeseen(error, method))

    return answer


def _stream(call: Behaviour, method: str) -> Behaviour:
    async def answer(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
        try:
            async with aclosing(call(request, context)) as responses:
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
    if failure_of(error) is None and not isinstance(error, grpc.aio.AbortError | grpc.aio.InternalError):
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
    if isinstance(error, grpc.aio.InternalError):
        raise asyncio.CancelledError from error
    failure = failure_of(error)
    try:
        if failure is None:
            await context.abort(grpc.StatusCode.INTERNAL, "a bug of the host; its log has the details")
        else:
            await context.abort_with_status(rpc_status.to_status(status_of(failure)))
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError from gone
    raise AssertionError("abort returns to nobody")
