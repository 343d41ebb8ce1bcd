"""How old a stream may become. After that its client comes back on a new one, and loses nothing.

A stream that lasts for ever is one that no balancer moves, no certificate's end reaches, and nobody misses when its
client has dropped it without a word (grpc/grpc#43462). Ages differ by a tenth each way, so that streams that began
together do not end together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from host_agent.service.clock import Clock, Timer
from host_agent.state import NS_PER_S

#: How far from the configured age the end of one stream may be, as a part of it.
_SPREAD: Final = 0.1
#: How long before its end an Attach stream says DRAINING, in seconds; a tenth of its age where that is less.
_GRACE_S: Final = 10.0


class StreamAge:
    """The age of every stream of a host, by its clock. ``max_age_s`` 0 is for ever."""

    def __init__(self, clock: Clock, max_age_s: float) -> None:
        self._clock = clock
        self._max_age_s = max_age_s

    @contextmanager
    def limit(self, end: Callable[[], None], *, warn: Callable[[float], None] | None = None) -> Iterator[None]:
        """Within the block: ``warn`` is called with the seconds that are left, later ``end``; not after the block."""
        if not self._max_age_s:
            yield
            return
        age_s = self._max_age_s * random.uniform(1 - _SPREAD, 1 + _SPREAD)
        grace_s = min(_GRACE_S, age_s / 10)
        timers = [self._after(age_s, end)]
        if warn is not None:
            timers.append(self._after(age_s - grace_s, lambda: warn(grace_s)))
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()

    def _after(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return self._clock.call_at(self._clock.now_ns() + round(delay_s * NS_PER_S), callback)
