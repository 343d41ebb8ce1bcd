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
