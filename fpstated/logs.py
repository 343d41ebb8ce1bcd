"""What our processes log, to standard error: lines for people, or JSON lines for programs.

Each line has the trace of the call that it belongs to, and the ids that the message came with (``EXTRA``), so that one
trace id, or one vCPU's name, finds what happened everywhere.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final, TextIO

from fpstated.link.trace import current_trace

#: What a record may carry beside its message, in the order in which it is shown.
EXTRA: Final = (
    "vm",
    "vcpu",
    "session",
    "epoch",
    "vcpus",
    "exit",
    "state",
    "cause",
    "attempt",
    "generation",
    "decision",
    "decided_by",
    "result",
    "control",
    "principal",
    "event_trace_id",
)


def set_up_logging(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Log from here on: ``log_format`` is text or json, ``level`` the least that is logged."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # At DEBUG gRPC says of each call which loop serves it.
    logging.getLogger("grpc").setLevel(max(logging.INFO, logging.getLogger().level))


def extras(record: logging.LogRecord) -> dict[str, object]:
    """What a record carries of ``EXTRA``, empty values apart, and the trace it belongs to."""
    found = {key: record.__dict__[key] for key in EXTRA if record.__dict__.get(key) not in (None, "")}
    trace = current_trace()
    return found if trace is None else {**found, "trace_id": trace.trace_id, "span_id": trace.span_id}


class JsonFormatter(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, logger, message, the ids, and a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """A line for a person, its ids behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback below it where there is one."""
        ids = " ".join(f"{key}={value}" for key, value in extras(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}{'  ' + ids if ids else ''}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}Z"
