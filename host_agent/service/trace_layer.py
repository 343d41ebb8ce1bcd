"""The layer that gives a call its trace: the caller's, or a new one. A stream has no span; each of its batches has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from fpstated.link.spans import span
from fpstated.link.trace import current_trace, new_trace, trace_of
from host_agent.service.layers import Context, Layer, Method

#: The call that this task serves, and its method; None outside of calls.
current_call: ContextVar[tuple[Method, Context] | None] = ContextVar("call", default=None)


class TraceLayer(Layer):
    """Outermost: what every other layer logs has the trace."""

    @contextmanager
    def around(self, method: Method, request: Any, context: Context) -> Iterator[Any]:  # noqa: ANN401
        """Be in the caller's trace while the call is served."""
        current_call.set((method, context))
        parent = trace_of(context.invocation_metadata())
        if method.is_stream:
            current_trace.set(parent.child() if parent is not None else new_trace())
            yield request
            return
        name = f"{method.service}/{method.name}"
        with span(name, parent, server=True, **{"rpc.system": "grpc", "rpc.method": method.name}):
            yield request
