"""Spans for OpenTelemetry, where its packages are installed and somebody has set up an export; nothing otherwise.

A span stands for one call, or for one batch of a stream, never for a stream: that may last for hours. The context is
ours (``trace.py``), so logs and spans agree, and so that it is handed on without the packages too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fpstated.link.trace import TraceContext, new_trace, reset_trace, set_trace

try:
    from opentelemetry import trace as otel
except ImportError:  # the extra [otel] is not installed
    otel = None  # type: ignore[assignment]

_SCOPE = "fpstated"


def start_export(name: str, *, service: str) -> None:
    """Export spans as ``name`` says: `console` to standard error, `otlp` to where OTEL_EXPORTER_OTLP_ENDPOINT says.

    Raises ImportError where the packages are not installed: pip install 'fpstated[otel]'.
    """
    import sys

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        ConsoleSpanExporter,
        SpanExporter,
    )

    exporter: SpanExporter = ConsoleSpanExporter(out=sys.stderr)
    if name == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    otel.set_tracer_provider(provider)


def exporting() -> bool:
    """Whether somebody has set up a provider: until then OpenTelemetry has a stand-in."""
    if otel is None:
        return False  # type: ignore[unreachable]  # only where it is not installed
    return type(otel.get_tracer_provider()) not in (otel.ProxyTracerProvider, otel.NoOpTracerProvider)


@contextmanager
def span(name: str, parent: TraceContext | None, *, server: bool, **attributes: str | int) -> Iterator[TraceContext]:
    """Do something as a child of ``parent``, or as the start of a trace; the context is current meanwhile."""
    if not exporting():
        with _current(parent.child() if parent is not None else new_trace()) as context:
            yield context
        return
    with _exported(name, parent, server=server, attributes=attributes) as context, _current(context):
        yield context


@contextmanager
def _exported(
    name: str, parent: TraceContext | None, *, server: bool, attributes: Mapping[str, str | int]
) -> Iterator[TraceContext]:
    started = otel.get_tracer(_SCOPE).start_as_current_span(
        name,
        context=None if parent is None else otel.set_span_in_context(otel.NonRecordingSpan(_remote(parent))),
        kind=otel.SpanKind.SERVER if server else otel.SpanKind.CLIENT,
        attributes=dict(attributes),
    )
    with started as recorded:
        found = recorded.get_span_context()
        state = parent.state if parent is not None else ""
        yield TraceContext(f"{found.trace_id:032x}", f"{found.span_id:016x}", found.trace_flags.sampled, state)


def _remote(context: TraceContext) -> otel.SpanContext:
    flags = otel.TraceFlags(otel.TraceFlags.SAMPLED if context.sampled else otel.TraceFlags.DEFAULT)
    return otel.SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote=True, trace_flags=flags)


@contextmanager
def _current(context: TraceContext) -> Iterator[TraceContext]:
    token = set_trace(context)
    try:
        yield context
    finally:
        reset_trace(token)
