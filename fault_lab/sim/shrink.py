"""Shrinking: as little as it takes for the same check to fail.

    whole faults      each is left out that the violation does not need
    hits              the run is written out as a schedule, and ddmin leaves hits out: halves first, then quarters, ...
    weaker, fewer     hits do less, and fewer VMs, vCPUs, rounds and events are left (fault_lab.sim.smaller)
    order             ddmin again, on the steps that were not in the order of time
    rounder           times are left out, or round

and again from the hits on, until nothing gets smaller. Another check that fails is no success: it would be another bug.

Source: ddmin, Zeller and Hildebrandt 2002 (doi 10.1109/32.988498).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fpstate.fault.v1 import plan_pb2

from fault_lab.plan.canonical import plan_hash
from fault_lab.plan.check import problems
from fault_lab.sim.run import RunResult, simulate
from fault_lab.sim.schedule import as_schedule, without_faults
from fault_lab.sim.smaller import Plans, fewer, rounder, weaker

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What was found: the smallest plan that fails with its own seed, its run, and how many runs that took.

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
        self._plan = plan_pb2.Plan()
        self._plan.CopyFrom(plan)
        self._plan.seed = seed
        self._plan.ClearField("search")
        self._best: tuple[plan_pb2.Plan, RunResult] | None = None
        self._tried: dict[str, bool] = {}

    def shrink(self) -> Shrunk | None:
        """Return the smallest that was found; None where the run does not fail that check."""
        if not self._fails(self._plan):
            return None
        exact = False
        try:
            self._whole_faults()
            plan, result = self._smallest
            exact = self._fails(as_schedule(plan, self._seed, result.fired, result.deviations))
            self._smaller(exact=exact)
        except _OutOfRunsError:
            pass
        plan, result = self._smallest
        return Shrunk(plan, result, self._runs_max - self._left, exact)

    @property
    def _smallest(self) -> tuple[plan_pb2.Plan, RunResult]:
        assert self._best is not None, "the run has failed once"
        return self._best

    def _whole_faults(self) -> None:
        """Leave out each fault of the plan that the violation does not need."""
        for fault in list(self._plan.faults):
            self._fails(without_faults(self._smallest[0], [fault.name]))

    def _smaller(self, *, exact: bool) -> None:
        """One stage after the other, until none of them makes the plan smaller."""
        before = None
        while before is not (before := self._smallest[0]):
            if exact:
                self._without("hits")
            self._each(weaker)
            self._each(fewer)
            if exact:
                self._without("deviations")
            self._each(rounder)

    def _without(self, what: str) -> None:
        """Leave out hits of the schedule, or deviations from the order of time."""
        plan = self._smallest[0]

        def with_these(rows: Sequence[object]) -> bool:
            made = plan_pb2.Plan()
            made.CopyFrom(plan)
            holder = made.schedule if what == "hits" else made.order
            holder.ClearField(what)  # type: ignore[arg-type] # a field of either
            getattr(holder, what).extend(rows)
            return self._fails(made)

        there: Sequence[object] = plan.schedule.hits if what == "hits" else plan.order.deviations
        if there:
            ddmin(list(there), with_these)

    def _each(self, smaller: Callable[[plan_pb2.Plan], Plans]) -> None:
        """Take what is smaller and still fails, and go on from there."""
        while any(plan_hash(plan) not in self._tried and self._fails(plan) for plan in smaller(self._smallest[0])):
            pass

    def _fails(self, plan: plan_pb2.Plan) -> bool:
        """Whether the same check fails with this plan; the last plan that does is the best so far."""
        key = plan_hash(plan)
        if key in self._tried or problems(plan):
            return self._tried.get(key, False)
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
