"""How long something took, counted: a histogram in plain numbers, which cost nothing until somebody asks."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, field
from typing import Final

#: Upper bounds in seconds, from a tenth of a millisecond on; prometheus_client's own begin at five.
_BOUNDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(slots=True)
class Durations:
    """``within`` counts by the first of ``_BOUNDS`` that was not passed; ``seconds`` is the sum."""

    seconds: float = 0.0
    within: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))

    def add(self, seconds: float) -> None:
        """One more."""
        self.seconds += seconds
        self.within[bisect.bisect_left(_BOUNDS, seconds)] += 1

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.within)

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: each holds those before it."""
        bounds = [*map(str, _BOUNDS), "+Inf"]
        return list(zip(bounds, itertools.accumulate(self.within), strict=True))
