"""Faults that a caller asks for itself, in the metadata that Envoy takes: obeyed only where that is switched on.

    x-envoy-fault-delay-request               milliseconds
    x-envoy-fault-delay-request-percentage    how many of 100; at most what is configured here
    x-envoy-fault-abort-grpc-request          a gRPC status, 1..16
    x-envoy-fault-abort-request-percentage    how many of 100; at most what is configured here

A delay comes before an abort, both before any traffic, and each has a draw of its own.

Source: grpc/proposal A33; Envoy's HTTP fault filter.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fault_lab.injection.draw import draw64
from fault_lab.live.interceptors.steps import CODES, Fail, Step, Wait

_DELAY: Final = "x-envoy-fault-delay-request"
_DELAY_PERCENT: Final = "x-envoy-fault-delay-request-percentage"
_ABORT: Final = "x-envoy-fault-abort-grpc-request"
_ABORT_PERCENT: Final = "x-envoy-fault-abort-request-percentage"


class HeaderFaults:
    """What callers may ask for: at most so many percent of calls, 0 to 100, with draws made from ``seed``.

    A header that is no number in its range is not obeyed.
    """

    def __init__(self, *, delay_percent: int = 100, abort_percent: int = 100, seed: int = 0) -> None:
        for name, percent in (("delay_percent", delay_percent), ("abort_percent", abort_percent)):
            if not 0 <= percent <= 100:
                raise ValueError(f"{name}: expected 0..100, got {percent}")
        self._delay_percent, self._abort_percent, self._seed = delay_percent, abort_percent, seed
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def steps(self, path: str, metadata: Iterable[tuple[str, Any]] | None) -> list[Step]:
        """What the metadata of a call of the method asks for, and is drawn for."""
        said = {key: value for key, value in metadata or () if key.startswith("x-envoy-fault-")}
        delay_ms, code = _number(said, _DELAY, 0, 86_400_000), _number(said, _ABORT, 1, 16)
        if delay_ms is None and code is None:
            return []
        with self._lock:
            self._asked[path] += 1
            nr = self._asked[path]
        steps: list[Step] = []
        if delay_ms is not None and self._drawn("delay", path, nr, said, _DELAY_PERCENT, self._delay_percent):
            steps.append(Wait(delay_ms / 1000))
        if code is not None and self._drawn("abort", path, nr, said, _ABORT_PERCENT, self._abort_percent):
            steps.append(Fail(CODES[code], "fault filter abort"))
        return steps

    def _drawn(self, what: str, path: str, nr: int, said: Mapping[str, Any], header: str, most: int) -> bool:
        asked = _number(said, header, 0, 100) if header in said else most
        return draw64(self._seed, f"header.{what}", path, nr) % 100 < min(asked or 0, most)


def _number(said: Mapping[str, Any], header: str, low: int, high: int) -> int | None:
    text = said.get(header)
    if not isinstance(text, str) or not (text.isascii() and text.isdecimal()):
        return None
    return int(text) if low <= int(text) <= high else None
