"""A search: runs of one plan, varied by a mode, and what they add up to.

found = search(plan, plan_pb2.SEARCH_MODE_RANDOM, runs=100, seed=1)
for tried in found:
    ...
found.exhausted             # whether nothing was left to try; otherwise the bounds were reached
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.search.hits import fail_nth_runs, pair_runs
from fault_lab.search.order import pct_runs
from fault_lab.search.seeds import random_runs
from fault_lab.search.swarm import swarm_runs
from fault_lab.search.tried import Runs, Tried


class SearchModeError(ValueError):
    """A mode that this search does not have."""


@dataclass(slots=True)
class Counts:
    """What the runs so far add up to. ``unknown`` are those that their budget ended."""

    runs: int = 0
    steps: int = 0
    steps_most: int = 0
    violations: int = 0
    unknown: int = 0
    fired: int = 0

    def add(self, tried: Tried) -> None:
        """Count a run."""
        result = tried.result
        self.runs += 1
        self.steps += result.steps
        self.steps_most = max(self.steps_most, result.steps)
        self.violations += result.violation is not None
        self.unknown += result.violation is None and result.cut_short
        self.fired += len(result.fired)


class Search(Iterator[Tried]):
    """An iterator over the runs, each of which happens when it is asked for."""

    def __init__(self, runs: Runs, runs_max: int) -> None:
        self._runs = runs
        self._runs_max = runs_max
        self.counts = Counts()
        #: The "sometimes" that came about in any run.
        self.seen: set[str] = set()
        #: Whether the mode ended by itself, with nothing left to try.
        self.exhausted = False

    def __next__(self) -> Tried:
        """Make the next run; the iterator ends when nothing is left to try, or with the bound."""
        if self.counts.runs >= self._runs_max:
            raise StopIteration
        try:
            tried = next(self._runs)
        except StopIteration:
            self.exhausted = True
            raise
        self.counts.add(tried)
        self.seen |= tried.seen
        return tried


#: What each mode is made by: the plan, the first seed, the depth.
MODES: Final[dict[plan_pb2.SearchMode.ValueType, Callable[[plan_pb2.Plan, int, int], Runs]]] = {
    plan_pb2.SEARCH_MODE_RANDOM: lambda plan, seed, _depth: random_runs(plan, seed),
    plan_pb2.SEARCH_MODE_SWARM: lambda plan, seed, _depth: swarm_runs(plan, seed),
    plan_pb2.SEARCH_MODE_FAIL_NTH: lambda plan, seed, _depth: fail_nth_runs(plan, seed),
    plan_pb2.SEARCH_MODE_PAIRS: lambda plan, seed, _depth: pair_runs(plan, seed),
    plan_pb2.SEARCH_MODE_PCT: pct_runs,
}


def search(plan: plan_pb2.Plan, mode: plan_pb2.SearchMode.ValueType, *, runs: int, seed: int, depth: int = 3) -> Search:
    """Search a checked plan with at most ``runs`` runs. Raises ``SearchModeError``."""
    made = MODES.get(mode)
    if made is None:
        known = ", ".join(sorted(mode_name(each) for each in MODES))
        raise SearchModeError(f"mode: expected one of {known}, got {mode_name(mode)}")
    return Search(made(plan, seed, depth), runs)


def mode_name(mode: plan_pb2.SearchMode.ValueType) -> str:
    """The name as a plan's text has it: ``fail-nth``."""
    name = plan_pb2.SearchMode.Name(mode)
    return name.removeprefix("SEARCH_MODE_").lower().replace("_", "-")
