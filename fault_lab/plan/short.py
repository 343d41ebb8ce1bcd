"""Short forms: a scalar where the message has fields of its own. Each fills the message, or says what it expected."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Any, Final

from fpstate.fault.v1 import fault_pb2
from google.protobuf import duration_pb2
from google.protobuf.message import Message

from fault_lab.injection.attributes import FaultAttributeError, parse_attributes
from fault_lab.wire.duration import duration
from fault_lab.wire.fault import attributes_to_proto

#: Numbers of errnos by name, as Linux has them.
ERRNOS: Final = {name: number for number, name in errno.errorcode.items()}
#: Numbers of gRPC's status codes by name. Source: grpc/doc/statuscodes.md.
STATUS_CODES: Final = {
    name: number
    for number, name in enumerate(
        (
            *("CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
            *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE"),
            *("UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
        ),
        start=1,
    )
}
_UNITS_NS: Final = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION: Final = re.compile(r"(?P<sign>-?)(?P<whole>[0-9][0-9_]*)(?:\.(?P<part>[0-9]+))?\s*(?P<unit>ns|us|ms|s|m|h)")
_ACTIONS: Final = ("drop", "duplicate", "reorder", "corrupt", "hold", "kill")


class ShortError(ValueError):
    """A scalar that is no short form; the text says what was expected."""


def parse_duration_ns(text: str) -> int:
    """``10ms``, ``1.5s``, ``2h``, ``0s``: nanoseconds, exactly."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ShortError("a duration such as 10ms, 1.5s or 2h")
    unit, part = _UNITS_NS[found["unit"]], found["part"] or ""
    fraction, rest = divmod(int(part or "0") * unit, 10 ** len(part))
    if rest:
        raise ShortError("a duration of whole nanoseconds")
    ns: int = int(found["whole"].replace("_", "")) * unit + fraction
    return -ns if found["sign"] else ns


def _duration(message: duration_pb2.Duration, text: str) -> None:
    message.CopyFrom(duration(parse_duration_ns(text)))


def _range(message: Any, text: str) -> None:  # noqa: ANN401 -- DelayAction or Latency
    """``5ms``, or ``1ms..5ms``."""
    least, dots, most = text.partition("..")
    try:
        _duration(message.min, least.strip())
        if dots:
            _duration(message.max, most.strip())
    except ShortError as error:
        raise ShortError("a duration such as 5ms, or a range such as 1ms..5ms") from error


def _errno(message: fault_pb2.ErrnoAction, text: str) -> None:
    number = ERRNOS.get(text, int(text) if text.isdecimal() else 0)
    if not number:
        raise ShortError("an errno such as ENOMEM or 12")
    message.errno_value = number


def _status(message: fault_pb2.StatusAction, text: str) -> None:
    code = STATUS_CODES.get(text, int(text) if text.isdecimal() else 0)
    if not code:
        raise ShortError("a gRPC status such as UNAVAILABLE or 14")
    message.code = code


def _action(message: fault_pb2.FaultAction, text: str) -> None:
    """The name of an errno, of a status, or of an action that needs no more."""
    if text in ERRNOS:
        message.errno_action.errno_value = ERRNOS[text]
    elif text in STATUS_CODES:
        message.status_action.code = STATUS_CODES[text]
    elif text in _ACTIONS:
        getattr(message, f"{text}_action").SetInParent()
    else:
        raise ShortError(f"an errno such as ENOMEM, a gRPC status such as UNAVAILABLE, or {', '.join(_ACTIONS)}")


def _attributes(message: fault_pb2.FaultAttributes, text: str) -> None:
    """The kernel's one line: ``<interval>,<probability>,<space>,<times>``."""
    try:
        made = attributes_to_proto(parse_attributes(text))
    except FaultAttributeError as error:
        raise ShortError(error.expected if error.field == "attr" else f"{error.field}: {error.expected}") from error
    message.CopyFrom(made)


def _count(field: str) -> Callable[[Any, str], None]:
    def fill(message: Any, text: str) -> None:  # noqa: ANN401
        if not text.isdecimal():
            raise ShortError("a number")
        setattr(message, field, int(text))

    return fill


def _time(field: str) -> Callable[[Any, str], None]:
    return lambda message, text: _duration(getattr(message, field), text)


_SHORT: Final[dict[str, Callable[[Any, str], None]]] = {
    "google.protobuf.Duration": _duration,
    "fpstate.fault.v1.Latency": _range,
    "fpstate.fault.v1.DelayAction": _range,
    "fpstate.fault.v1.FaultAttributes": _attributes,
    "fpstate.fault.v1.FaultAction": _action,
    "fpstate.fault.v1.ErrnoAction": _errno,
    "fpstate.fault.v1.StatusAction": _status,
    "fpstate.fault.v1.DuplicateAction": _count("copies"),
    "fpstate.fault.v1.ReorderAction": _count("depth"),
    "fpstate.fault.v1.CorruptAction": _count("bits"),
    "fpstate.fault.v1.HoldAction": _time("duration"),
    "fpstate.fault.v1.PauseAction": _time("duration"),
    "fpstate.fault.v1.KillAction": _time("restart_after"),
    "fpstate.fault.v1.ClockAction": _time("jump"),
    "fpstate.fault.v1.RandomPlay": _count("events"),
    "fpstate.fault.v1.PlannedAttach": _count("events"),
    "fpstate.fault.v1.Phase": _time("duration"),
}
#: The kernel's own name of an attribute that is in parts per million here.
PROBABILITY: Final = "probability"
_PERCENT: Final = re.compile(r"([0-9]+)(?:\.([0-9]{1,4}))?\s*%?")


def has_short_form(name: str) -> bool:
    """Whether a message of this full name may be a scalar."""
    return name in _SHORT


def fill_short(message: Message, text: str) -> None:
    """Fill a message from its short form. Raises ``ShortError``."""
    _SHORT[message.DESCRIPTOR.full_name](message, text)


def percent_ppm(text: str) -> int:
    """``30``, ``30%`` or ``0.5%``: parts per million. Raises ``ShortError``."""
    found = _PERCENT.fullmatch(text)
    if found is None or int(found[1]) * 10_000 + int((found[2] or "").ljust(4, "0")) > 10**6:
        raise ShortError("a percentage of 0 to 100 with at most four decimals")
    return int(found[1]) * 10_000 + int((found[2] or "").ljust(4, "0"))
