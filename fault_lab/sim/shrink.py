"""Shrinking: as few faults as it takes for the same check to fail.

First whole faults of the plan are left out. Then the run is written out as a schedule, and ddmin leaves out hits:
halves first, then quarters, ..., until not one can go (Zeller and Hildebrandt, 2002). Another check that
fails is no success: it would be another bug.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fpstate.fault.v1 import plan_pb2

from fault_lab.sim.run import RunResult, simulate
from fault_lab.sim.schedule import as_schedule, without_faults

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What was found: the smallest plan that fails, its run, and how many runs that took.

    ``exact``: the run could be written out as a schedule and the check failed there too; otherwise the plan still has
    faults with chances.
    """

    plan: plan_pb2.Plan
    result: RunResult
    runs: int
    exact: bool


class _OutOfRunsError(Exception):
    """No more runs are allowed."""


class Shrinker:
    """Shrinks one failing run, with at most ``runs_max`` runs."""

    def __init__(self, plan: plan_pb2.Plan, seed: int, check: str, *, runs_max: int = 1000) -> None:
        self._check = check
        self._left = runs_max
        self._runs_max = runs_max
        self._seed = seed
        self._best: tuple[plan_pb2.Plan, RunResult] | None = None
        self._plan = plan
        self._tried: dict[bytes, bool] = {}

    def shrink(self) -> Shrunk | None:
        """Return the smallest that was found; None where the run does not fail that check."""
        if not self._fails(self._plan):
            return None
        exact = False
        try:
            self._whole_faults()
            assert self._best is not None, "the run has failed once"
            plan, result = self._best
            exact = self._fails(as_schedule(plan, self._seed, result.fired))
            if exact:
                plan, result = self._best
                ddmin(result.fired, lambda hits: self._fails(as_schedule(plan, self._seed, hits)))
        except _OutOfRunsError:
            pass
        assert self._best is not None, "the run has failed once"
        plan, result = self._best
        return Shrunk(plan, result, self._runs_max - self._left, exact)

    def _whole_faults(self) -> None:
        """Leave out each fault of the plan that the violation does not need."""
        assert self._best is not None, "the run has failed once"
        for fault in list(self._plan.faults):
            self._fails(without_faults(self._best[0], [fault.name]))

    def _fails(self, plan: plan_pb2.Plan) -> bool:
        """Whether the same check fails with this plan; the last plan that does is the best so far."""
        key = plan.SerializeToString(deterministic=True)
        if key in self._tried:
            return self._tried[key]
        if not self._left:
            raise _OutOfRunsError
        self._left -= 1
        result = simulate(plan, self._seed)
        fails = result.violation is not None and result.violation.check == self._check
        self._tried[key] = fails
        if fails:
            self._best = plan, result
        return fails


def ddmin(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """Return a part of ``items`` that still fails and of which no single one can be left out.

    ``fails`` is true of ``items``.
    """
    parts = 2
    while items:
        size = -(-len(items) // parts)
        for start in range(0, len(items), size):
            rest = [*items[:start], *items[start + size :]]
            if fails(rest):
                items, parts = rest, max(parts - 1, 2)
                break
        else:
            if parts >= len(items):
                break
            parts = min(2 * parts, len(items))
    return items
