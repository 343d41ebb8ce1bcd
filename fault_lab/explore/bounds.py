"""How far an exploration goes, and what a path has used up of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits of one exploration. Every count is of one path, except ``states``, which is of all.

    Attributes:
        depth: steps.
        states: distinct states; the search ends with the last of them.
        faults: hits that fire, of whatever kind.
        drops: of those, messages and decisions that are lost.
        duplicates: of those, messages and decisions that come twice, or come with a contradiction.
        crashes: of those, processes that end, and agents that stand still until their lease is over.
        preemptions: how often something happens out of its turn (a message overtakes one sent before it, an exit's
            deadline passes while its decision is on the way); None for as often as it can.
        symmetry: whether guests that play the same are interchangeable.
        reduction: whether what concerns nobody else happens at once.
    """

    depth: int = 200
    states: int = 100_000
    faults: int = 2
    drops: int = 1
    duplicates: int = 1
    crashes: int = 1
    preemptions: int | None = None
    symmetry: bool = True
    reduction: bool = True

    def __post_init__(self) -> None:
        for name in ("depth", "states"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("faults", "drops", "duplicates", "crashes", "preemptions"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")


class Spent(NamedTuple):
    """What a path has used up. ``preemptions`` stays 0 where they are not bounded: they make no difference then."""

    faults: int = 0
    drops: int = 0
    duplicates: int = 0
    crashes: int = 0
    preemptions: int = 0

    def within(self, bounds: Bounds) -> bool:
        """Whether that much may be used up."""
        return (
            self.faults <= bounds.faults
            and self.drops <= bounds.drops
            and self.duplicates <= bounds.duplicates
            and self.crashes <= bounds.crashes
            and (bounds.preemptions is None or self.preemptions <= bounds.preemptions)
        )

    def and_fault(self, *, drops: int = 0, duplicates: int = 0, crashes: int = 0) -> Spent:
        """One more hit that fires."""
        return Spent(
            self.faults + 1,
            self.drops + drops,
            self.duplicates + duplicates,
            self.crashes + crashes,
            self.preemptions,
        )
