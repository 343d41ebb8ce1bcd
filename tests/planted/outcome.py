"""What a trial is told and what it comes to: plain values that go from process to process as JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How long is looked: the modes, the runs of each, the first seed, and the runs that shrinking may take.

    ``once``: of what the modes have found only the find with the fewest faults is shrunk.
    """

    modes: tuple[str, ...]
    runs: int
    shrink: int
    seed: int = 1
    once: bool = False

    @property
    def words(self) -> list[str]:
        """The same as arguments of a command."""
        return [
            *("--modes", ",".join(self.modes)),
            *("--runs", str(self.runs), "--shrink", str(self.shrink), "--seed", str(self.seed)),
            *(["--once"] if self.once else []),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Find:
    """One mode before one bug. ``check`` is empty where ``runs`` runs found nothing.

    ``faults`` is what is left of those that fired after shrinking; None where it was not shrunk.
    """

    mode: str
    runs: int
    check: str = ""
    text: str = ""
    plan: str = ""
    varied: str = ""
    faults: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One bug, or a healthy plan, before every mode. ``error``: it could not be tried."""

    name: str
    finds: tuple[Find, ...] = ()
    error: str = ""
    seconds: float = 0.0

    @property
    def caught(self) -> list[Find]:
        """The modes that found something, those that took the fewest runs first."""
        return sorted((find for find in self.finds if find.check), key=lambda find: find.runs)

    @property
    def faults(self) -> int | None:
        """The fewest faults that any mode's find was shrunk to."""
        return min((find.faults for find in self.caught if find.faults is not None), default=None)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Trial:
        """The trial of a line."""
        fields: dict[str, Any] = json.loads(line)
        return cls(**fields | {"finds": tuple(Find(**each) for each in fields["finds"])})


@dataclass(slots=True)
class Tally:
    """What the trials add up to."""

    trials: list[Trial] = field(default_factory=list)

    @property
    def caught(self) -> int:
        """How many bugs some mode has found."""
        return sum(bool(trial.caught) for trial in self.trials)

    @property
    def median_faults(self) -> float | None:
        """Of the faults that are left for each bug that was caught."""
        return median(trial.faults for trial in self.trials)

    @property
    def line(self) -> str:
        """The last line."""
        return f"planted: {len(self.trials)}, caught: {self.caught}, median faults: {number(self.median_faults)}"

    def status(self, faults_max: int) -> int:
        """0 where every bug is caught, and in the median by no more faults than that."""
        faults = self.median_faults
        small = faults is None or faults <= faults_max
        return 0 if self.caught == len(self.trials) and small else 1


def median(values: Iterable[float | None]) -> float | None:
    """The median of those that are there."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def number(value: float | None) -> str:
    """A median as text."""
    return "-" if value is None else f"{value:g}"
