"""The clock of a host: the system's monotonic one, or one that a test moves by hand.

The machine has no clock. The agent stamps each command with ``now_ns`` and asks to be called when something is due, so
a host on a manual clock does exactly what a host on the system's would, without waiting for it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from contextvars import Context
from typing import Protocol

NS_PER_S = 1_000_000_000
_PPM = 1_000_000


class Timer(Protocol):
    """One wish to be called."""

    def cancel(self) -> None:
        """Withdraw it; nothing happens where it was granted already."""


class Clock(Protocol):
    """What the agent needs of a clock. Times are nanoseconds since the clock was made; they never go back."""

    def now_ns(self) -> int:
        """The time now."""

    def unix_ns(self) -> int:
        """The wall clock: nanoseconds since 1970, for people alone."""

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` on the running loop's thread once the time is ``when_ns`` or later; at once if it is."""


class MonotonicClock:
    """The system's CLOCK_MONOTONIC, counted from the moment the object is made."""

    def __init__(self) -> None:
        self._origin_ns = time.monotonic_ns()

    def now_ns(self) -> int:
        """Nanoseconds since the clock was made."""
        return time.monotonic_ns() - self._origin_ns

    def unix_ns(self) -> int:
        """The system's CLOCK_REALTIME."""
        return time.time_ns()

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` from the running event loop; it may come a clock tick early, as asyncio's timers do."""
        delay_s = max(0, when_ns - self.now_ns()) / NS_PER_S
        # In a context of its own: what falls due belongs to nobody's call, whoever's call it was that set the timer.
        return asyncio.get_running_loop().call_later(delay_s, callback, context=Context())


class SkewedClock(MonotonicClock):
    """The system's monotonic clock until ``skew``, which puts it forward and lets it run fast or slow; never back.

    What a host with fault injection runs on; while nobody skews it, it shows what ``MonotonicClock`` does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._from_ns = 0
        self._shown_ns = 0
        self._drift_ppm = 0
        self._timers: dict[_SkewedTimer, None] = {}

    def now_ns(self) -> int:
        """What it shows."""
        return self._shown_ns + (super().now_ns() - self._from_ns) * (_PPM + self._drift_ppm) // _PPM

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> Timer:
        """As of the system's clock, and sooner or later where this one is skewed meanwhile."""
        timer = _SkewedTimer(self._timers, when_ns, callback)
        timer.wait(self.delay_s(when_ns))
        return timer

    def delay_s(self, when_ns: int) -> float:
        """In how many seconds of the system's clock this one shows ``when_ns``."""
        return max(0, when_ns - self.now_ns()) / NS_PER_S * _PPM / (_PPM + self._drift_ppm)

    def skew(self, jump_ns: int, drift_ppm: int) -> None:
        """Jump forward, and run so many parts per million fast, or slow if negative, from now on.

        Raises ``ValueError`` for a step backwards, and for a clock that would stand still.
        """
        if jump_ns < 0 or drift_ppm <= -_PPM:
            raise ValueError(f"expected a jump from 0 and a drift above -1,000,000, got {jump_ns} and {drift_ppm}")
        shown_ns = self.now_ns() + jump_ns
        self._from_ns, self._shown_ns, self._drift_ppm = super().now_ns(), shown_ns, drift_ppm
        for timer in list(self._timers):
            timer.wait(self.delay_s(timer.when_ns))


class _SkewedTimer:
    """A callback until it is called or cancelled; ``wait`` says anew how long that takes."""

    def __init__(self, among: dict[_SkewedTimer, None], when_ns: int, callback: Callable[[], None]) -> None:
        self.when_ns = when_ns
        self._among = among
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def wait(self, delay_s: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._among[self] = None
        self._handle = asyncio.get_running_loop().call_later(delay_s, self._fire, context=Context())

    def cancel(self) -> None:
        self._among.pop(self, None)
        if self._handle is not None:
            self._handle.cancel()

    def _fire(self) -> None:
        del self._among[self]
        self._callback()


class ManualClock:
    """A clock that stands still until ``advance``. Call it on the thread of the agent's event loop.

    >>> clock = ManualClock()
    >>> _ = clock.call_at(3_000_000_000, lambda: print("due at", clock.now_ns()))
    >>> clock.advance(10)
    due at 3000000000
    >>> clock.now_ns()
    10000000000
    """

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, _ManualTimer]] = []

    def now_ns(self) -> int:
        """Where the clock was put."""
        return self._now_ns

    def unix_ns(self) -> int:
        """The same: time began in 1970."""
        return self._now_ns

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` within the ``advance`` that reaches ``when_ns``; within the next one if that is past."""
        timer = _ManualTimer(callback)
        heapq.heappush(self._waiting, (when_ns, next(self._order), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Move the clock on. Whatever falls due on the way happens before this returns, each at its own time.

        Raises ``ValueError`` for a step backwards.
        """
        if seconds < 0:
            raise ValueError(f"seconds: expected 0 or more, got {seconds!r}")
        target_ns = self._now_ns + round(seconds * NS_PER_S)
        while self._waiting and self._waiting[0][0] <= target_ns:
            when_ns, _, timer = heapq.heappop(self._waiting)
            self._now_ns = max(self._now_ns, when_ns)
            timer.fire()
        self._now_ns = target_ns


class _ManualTimer:
    """A callback until it is called or cancelled."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()
