"""Durations: a message on the wire, nanoseconds inside."""

from __future__ import annotations

from typing import Final

from google.protobuf import duration_pb2

from fault_lab.injection.attributes import FaultAttributeError

NS_PER_S: Final = 1_000_000_000
DAY_NS: Final = 24 * 3600 * NS_PER_S


def duration_ns(path: str, value: duration_pb2.Duration, *, least: int = 0, most: int = DAY_NS) -> int:
    """A duration in nanoseconds, within ``least``..``most``."""
    ns = value.seconds * NS_PER_S + value.nanos
    if not least <= ns <= most or abs(value.nanos) >= NS_PER_S or value.seconds * value.nanos < 0:
        raise FaultAttributeError(path, f"a duration of {seconds(least)} to {seconds(most)}", seconds(ns))
    return ns


def duration(ns: int) -> duration_pb2.Duration:
    """Nanoseconds as a Duration: seconds and nanoseconds have the same sign."""
    whole, rest = divmod(abs(ns), NS_PER_S)
    sign = -1 if ns < 0 else 1
    return duration_pb2.Duration(seconds=sign * whole, nanos=sign * rest)


def seconds(ns: int) -> str:
    """Nanoseconds in words, as exactly as need be."""
    whole, rest = divmod(abs(ns), NS_PER_S)
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return f"{'-' if ns < 0 else ''}{whole}{fraction} s"
