"""Two things measured by turns, in blocks: what the machine does meanwhile happens to both.

The ratio is the median of the blocks' own ratios, each of a block of ours and the block of the floor beside it; the
spread is their quartiles. A machine that others use moves the rates and, far less, the ratio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median, quantiles

#: Runs a block and returns its figure: a rate, or a time.
Block = Callable[[], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Medians of both figures, and of the ratio with its quartiles."""

    value: float
    reference: float
    ratio: float
    low: float
    high: float


@dataclass(slots=True)
class Figures:
    """The figures of pairs of blocks, as they come."""

    ours: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)

    async def take(self, ours: Block, floor: Block, *, pairs: int) -> None:
        """Run blocks A B, B A, A B ...; a first pair warms up and does not count."""
        for nr in range(pairs + 1):
            turn = ((self.ours, ours), (self.floor, floor))
            for figures, block in turn if nr % 2 == 0 else turn[::-1]:
                figure = await block()
                if nr:
                    figures.append(figure)

    def alternate(self, ours: Callable[[], float], floor: Callable[[], float], *, pairs: int) -> None:
        """``take`` of blocks that wait for nothing."""

        async def block(run: Callable[[], float]) -> float:
            return run()

        asyncio.run(self.take(lambda: block(ours), lambda: block(floor), pairs=pairs))

    def pairs(self) -> Pairs:
        """What they come to."""
        ratios = [a / b for a, b in zip(self.ours, self.floor, strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else (ratios[0],) * 3
        return Pairs(median(self.ours), median(self.floor), median(ratios), low, high)
