"""The layer that gives a call its trace: the caller's, or a new one. A stream has no span; each of its batches has."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from fpstated.link.spans import exporting, span
from fpstated.link.trace import TraceContext, new_trace, set_trace, trace_of
from host_agent.service.layers import Context, Layer, Method

#: The call that this task serves, and its method; None outside of calls.
current_call: ContextVar[tuple[Method, Context] | None] = ContextVar("call", default=None)


class TraceLayer(Layer):
    """Outermost: what every other layer logs has the trace. Whether spans are exported is settled when it is made."""

    def __init__(self) -> None:
        self._exporting = exporting()

    def enter(self, method: Method, request: Any, context: Context) -> tuple[Any, Any]:  # noqa: ANN401
        """Be in the caller's trace while the call is served."""
        current_call.set((method, context))
        if method.is_stream:
            set_trace(_trace(context))  # now: its tasks are to share it
        elif self._exporting:
            attributes = {"rpc.system": "grpc", "rpc.method": method.name}
            parent = trace_of(context.invocation_metadata())
            entered = span(f"{method.service}/{method.name}", parent, server=True, **attributes)
            entered.__enter__()
            return request, entered
        else:
            set_trace(functools.partial(_trace, context))  # most calls have nothing to say, and need no trace
        return request, None

    def leave(
        self, method: Method, context: Context, kept: AbstractContextManager[Any] | None, *, cancelled: bool
    ) -> None:
        """End its span."""
        if kept is not None:
            kept.__exit__(None, None, None)


def _trace(context: Context) -> TraceContext:
    """The caller's trace, a place of our own in it; or a new trace."""
    parent = trace_of(context.invocation_metadata())
    return parent.child() if parent is not None else new_trace()
