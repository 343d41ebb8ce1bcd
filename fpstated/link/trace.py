"""The trace that a call belongs to, as W3C Trace Context has it: read from a call's metadata, handed on in the next.

    traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01

Whoever starts something without a trace starts a trace, so that one id finds what guest, host and controller logged of
it. Source: W3C Recommendation Trace Context, sections 3.2 and 3.3.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from typing import Any, Final

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
#: In the trailing metadata of ResolveExit: the trace of the event that led to the exit.
EVENT_TRACEPARENT: Final = "fpstate-event-traceparent"
_SHAPE: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE_MAX: Final = 512

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in a trace. Ids in lower-case hexadecimal; ``state`` is handed on as it came."""

    trace_id: str
    span_id: str
    sampled: bool = True
    state: str = ""

    @property
    def header(self) -> str:
        """The value of `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    def child(self) -> TraceContext:
        """A new place in the same trace."""
        return replace(self, span_id=os.urandom(8).hex())


#: The trace of what this task, or this thread, does; or what finds it out when somebody asks.
_current: ContextVar[TraceContext | Callable[[], TraceContext] | None] = ContextVar("trace", default=None)


def current_trace() -> TraceContext | None:
    """The trace of what this task, or this thread, does."""
    found = _current.get()
    if found is None or isinstance(found, TraceContext):
        return found
    made = found()
    _current.set(made)
    return made


def set_trace(trace: TraceContext | Callable[[], TraceContext] | None) -> Token[Any]:
    """Say what trace this task is in from here on, or how to find out. ``reset_trace`` takes the token."""
    return _current.set(trace)


def reset_trace(token: Token[Any]) -> None:
    """Go back to the trace before."""
    _current.reset(token)


def new_trace() -> TraceContext:
    """A trace nobody had before."""
    ids = os.urandom(24).hex()
    return TraceContext(ids[:32], ids[32:])


def parse_traceparent(header: str, state: str = "") -> TraceContext | None:
    """Read a header; None for what is none, which is then as if it had not come."""
    match = _SHAPE.fullmatch(header)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1), state if len(state) <= _STATE_MAX else "")


def trace_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> TraceContext | None:
    """The trace that a call's metadata speaks of."""
    found = {key: value for key, value in metadata or () if key in (TRACEPARENT, TRACESTATE)}
    header, state = found.get(TRACEPARENT), found.get(TRACESTATE, "")
    return parse_traceparent(header, state if isinstance(state, str) else "") if isinstance(header, str) else None


def event_trace_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> TraceContext | None:
    """The trace that the answer of ResolveExit names: of the guest's event that led to the exit."""
    header = next((value for key, value in metadata or () if key == EVENT_TRACEPARENT), None)
    return parse_traceparent(header) if isinstance(header, str) else None


def trace_metadata() -> Metadata:
    """What a call is to carry: the current trace, or a new one."""
    current = current_trace()
    context = current.child() if current is not None else new_trace()
    header = (TRACEPARENT, context.header)
    return (header, (TRACESTATE, context.state)) if context.state else (header,)


@contextmanager
def tracing(context: TraceContext | None = None) -> Iterator[TraceContext]:
    """Let every call of the block belong to one trace: ``context``, or a new one."""
    entered = context or new_trace()
    token = set_trace(entered)
    try:
        yield entered
    finally:
        reset_trace(token)


def in_one_trace() -> AbstractContextManager[TraceContext]:
    """Let the calls of the block belong together: to the current trace, or else to a new one."""
    return tracing(current_trace())
