"""Two things measured by turns, in blocks: what the machine does meanwhile happens to both.

The ratio is the median of the blocks' own ratios, each of a block of ours and the block of the floor beside it; the
spread is their quartiles. A machine that others use moves the rates and, far less, the ratio.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
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


def pairs_of(ours: list[float], floor: list[float]) -> Pairs:
    """What pairs of figures come to."""
    ratios = [a / b for a, b in zip(ours, floor, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return Pairs(median(ours), median(floor), median(ratios), low, high)


async def by_turns(ours: Block, floor: Block, *, pairs: int) -> Pairs:
    """Run blocks A B, B A, A B ... and return what they come to; a first pair warms up and does not count."""
    figures: tuple[list[float], list[float]] = ([], [])
    for nr in range(pairs + 1):
        turn = ((0, ours), (1, floor)) if nr % 2 == 0 else ((1, floor), (0, ours))
        for which, block in turn:
            figure = await block()
            if nr:
                figures[which].append(figure)
    return pairs_of(*figures)
