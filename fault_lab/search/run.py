"""A search: runs of one plan, varied by a mode, and what they add up to.

found = search(plan, plan_pb2.SEARCH_MODE_RANDOM, runs=100, seed=1)
for tried in found:
    ...
found.exhausted             # whether nothing was left to try; otherwise the bounds were reached
found.bounds                # within which nothing else was looked at
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from fpstate.fault.v1 import plan_pb2

from fault_lab.search.hits import fail_nth_runs, pair_runs
from fault_lab.search.order import pct_runs
from fault_lab.search.seeds import random_runs
from fault_lab.search.swarm import swarm_runs
from fault_lab.search.tried import SEEDS, Runs, Tried

Mode: TypeAlias = "plan_pb2.SearchMode.ValueType"


class SearchModeError(ValueError):
    """A mode that there is not."""


@dataclass(frozen=True, slots=True)
class _Way:
    """A mode: what makes its runs, from the plan, the first seed and the depth; what it looks at, for people."""

    runs: Callable[[plan_pb2.Plan, int, int], Runs]
    #: With {seeds} or {seed}, {depth} and {runs}.
    looks_at: str
    #: The same where nothing was left; empty for a mode that never ends by itself.
    whole: str = ""
    runs_max: int = 100


_ENDING: Final = 100_000
#: Every order within a budget is another matter: that search goes over states, and not over runs.
_WAYS: Final = {
    plan_pb2.SEARCH_MODE_RANDOM: _Way(lambda plan, seed, _: random_runs(plan, seed), "{seeds}"),
    plan_pb2.SEARCH_MODE_SWARM: _Way(lambda plan, seed, _: swarm_runs(plan, seed), "{seeds}, a plan drawn from each"),
    plan_pb2.SEARCH_MODE_FAIL_NTH: _Way(
        lambda plan, seed, _: fail_nth_runs(plan, seed),
        "seed {seed}, the first {hits} hits, each alone",
        "seed {seed}, each hit alone, {hits} in all",
        _ENDING,
    ),
    plan_pb2.SEARCH_MODE_PAIRS: _Way(
        lambda plan, seed, _: pair_runs(plan, seed),
        "seed {seed}, the first {hits} of each hit alone and each pair",
        "seed {seed}, each hit alone and each pair, {hits} in all",
        _ENDING,
    ),
    plan_pb2.SEARCH_MODE_PCT: _Way(pct_runs, "priorities of {seeds}, depth {depth}"),
}
DEPTH: Final = 3


@dataclass(slots=True)
class Counts:
    """What the runs so far add up to. ``unknown`` are those of which nothing can be said."""

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
        self.unknown += result.violation is None and bool(result.unknown)
        self.fired += len(result.fired)


class Search(Iterator[Tried]):
    """An iterator over the runs, each of which happens when it is asked for."""

    def __init__(self, plan: plan_pb2.Plan, mode: Mode, *, runs: int, seed: int, depth: int) -> None:
        self._way = _way(mode)
        self._left = self._way.runs(plan, seed, depth)
        self._seed = seed
        self._depth = depth
        self.mode = mode
        self.runs_max = runs
        self.counts = Counts()
        #: The "sometimes" that came about in any run.
        self.seen: set[str] = set()
        #: Whether the mode ended by itself, with nothing left to try.
        self.exhausted = False

    def __next__(self) -> Tried:
        """Make the next run; the iterator ends when nothing is left to try, or with the bound."""
        if self.counts.runs >= self.runs_max:
            raise StopIteration
        try:
            tried = next(self._left)
        except StopIteration:
            self.exhausted = True
            raise
        self.counts.add(tried)
        self.seen |= tried.seen
        return tried

    @property
    def bounds(self) -> str:
        """What has been looked at, in words: seeds, hits, depth, steps."""
        runs, first = self.counts.runs, self._seed
        last = (first + max(runs, 1) - 1) % SEEDS
        looked = (self._way.whole if self.exhausted else self._way.looks_at).format(
            seed=first,
            seeds=f"seed {first}" if first == last else f"seeds {first}..{last}",
            hits=max(runs - 1, 0),
            depth=self._depth,
        )
        cut = f", nothing known of {self.counts.unknown} runs" if self.counts.unknown else ""
        return f"{looked}, {self.counts.steps_most} steps a run at most{cut}"


def search(plan: plan_pb2.Plan, mode: Mode, *, runs: int = 0, seed: int, depth: int = DEPTH) -> Search:
    """Search a checked plan with at most ``runs`` runs, 0 for as many as the mode has. Raises ``SearchModeError``.

    ``depth`` is of PCT.
    """
    return Search(plan, mode, runs=runs or _way(mode).runs_max, seed=seed, depth=depth)


def _way(mode: Mode) -> _Way:
    way = _WAYS.get(mode)
    if way is None:
        known = ", ".join(sorted(mode_name(each) for each in _WAYS))
        raise SearchModeError(f"mode: expected one of {known}, got {mode_name(mode)}")
    return way


def mode_name(mode: Mode) -> str:
    """The name as a plan's text has it: ``fail-nth``."""
    return plan_pb2.SearchMode.Name(mode).removeprefix("SEARCH_MODE_").lower().replace("_", "-")


def mode_of(name: str) -> Mode:
    """The mode of that name. Raises ``SearchModeError``."""
    for mode in plan_pb2.SearchMode.values():
        if mode and mode_name(mode) == name:
            return mode
    known = ", ".join(mode_name(each) for each in plan_pb2.SearchMode.values() if each)
    raise SearchModeError(f"mode: expected one of {known}, got {name!r}")
