"""Runs as a test has them: one that is finished, or one after the other; and what they came to, for the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from fpstated.testing.records import Records

if TYPE_CHECKING:
    from fpstate.fault.v1 import plan_pb2

    from fault_lab.plan.numbered import Fired
    from fault_lab.sim.run import Found, RunResult


@dataclass(frozen=True, repr=False)
class FaultRun:
    """A finished run: its plan, its seed, and what came of it.

    ``word`` is what a command calls the plan by, empty where it has no file; ``seeded``: the seed alone makes it this
    run; ``varied`` says what made it another than the rest of a search.
    """

    plan: plan_pb2.Plan
    seed: int
    result: RunResult
    word: str = ""
    seeded: bool = True
    varied: str = ""
    live: bool = False
    expected: str = ""
    asked: tuple[str, ...] = ()
    #: What came about by the names of the plan that was searched, where the run's own plan is another.
    named: frozenset[str] = frozenset()

    @property
    def violation(self) -> Found | None:
        """The check that does not hold: its name, what was found, the step and the moment."""
        return self.result.violation

    @property
    def fired(self) -> tuple[Fired, ...]:
        """The hits that fired, in their order."""
        return self.result.fired

    @property
    def seen(self) -> frozenset[str]:
        """What came about: ``fired:NAME``, ``decided-retry``, ..."""
        return self.result.seen | self.named

    @cached_property
    def history(self) -> Records:
        """The records."""
        return Records(self.result.lines)

    @property
    def failure(self) -> str:
        """Why the run fails its test; empty where it does not."""
        found = self.violation
        if found is not None and found.check != self.expected:
            return f"{found.check} does not hold, at step {found.step}, {found.t_ns / 1e9:.6f} s: {found.text}"
        if self.expected and found is None:
            return f"{self.expected} holds: expected that it does not"
        if found is None and self.result.cut_short:
            return "the budget ended the run: nothing is known about its end"
        unseen = [name for name in self.asked if name not in self.seen]
        return f"never seen: {', '.join(unseen)}" if unseen else ""

    def __repr__(self) -> str:
        found = self.violation.check if self.violation else "holds"
        return f"<FaultRun {self.plan.name} seed {self.seed}: {found}, {len(self.fired)} fired>"

    def judge(self) -> None:
        """Fail the test where the run does."""
        if self.failure:
            pytest.fail(self.failure, pytrace=False)


@dataclass(slots=True)
class Ran:
    """What ran for a test. ``last`` is the run that a report is about; ``wanted`` is what is to be seen in some run."""

    runs: int = 0
    steps: int = 0
    fired: int = 0
    violations: int = 0
    seen: set[str] = field(default_factory=set)
    wanted: list[str] = field(default_factory=list)
    last: FaultRun | None = None

    def add(self, run: FaultRun) -> None:
        """Count a run."""
        self.runs += 1
        self.steps += run.result.steps
        self.fired += len(run.fired)
        self.violations += run.violation is not None
        self.seen |= run.seen
        self.last = run

    @property
    def figures(self) -> dict[str, Any]:
        """What goes from a worker to who reports: JSON's types alone."""
        names = ("runs", "steps", "fired", "violations")
        return {**{name: getattr(self, name) for name in names}, "seen": sorted(self.seen), "wanted": self.wanted}


class FaultRuns(Iterator[FaultRun]):
    """Runs, each of which happens when it is asked for. One that violates a check fails the test there and then.

    Behind the last run, what was to be seen in some run must have been, and so must a violation that is ``expected``.
    """

    def __init__(self, runs: Iterator[FaultRun], ran: Ran, bounds: Callable[[], str], expected: str = "") -> None:
        self._runs = runs
        self._ran = ran
        self._bounds = bounds
        self._expected = expected

    def __next__(self) -> FaultRun:
        """The next run."""
        run = next(self._runs, None)
        if run is None:
            self._end()
            raise StopIteration
        self._ran.add(run)
        if run.violation is not None or not self._expected:
            run.judge()
        return run

    @property
    def bounds(self) -> str:
        """What has been looked at, in words: seeds, hits, depth, steps."""
        return self._bounds()

    def _end(self) -> None:
        if self._expected and not self._ran.violations:
            pytest.fail(f"{self._expected} holds in every run; looked at: {self.bounds}", pytrace=False)
        unseen = [name for name in self._ran.wanted if name not in self._ran.seen]
        if unseen:
            pytest.fail(f"never seen: {', '.join(unseen)}; looked at: {self.bounds}", pytrace=False)
