"""How the runs of a test are made: simulated, replayed, or on real processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from fpstated.testing.run import FaultRun, FaultRuns, Ran

if TYPE_CHECKING:
    from fpstated.testing.marker import Runs

#: The mode that goes over states, and not over runs.
EXHAUSTIVE: Final = "exhaustive"


def one_run(request: pytest.FixtureRequest, runs: Runs, seed: int) -> FaultRun:
    """The run of one seed. What is to be seen is asked of a run that is the only one."""
    asked = tuple(runs.plan.checks.sometimes) if len(runs.seeds) == 1 else ()
    return _played(request, runs, seed, asked)


def all_runs(request: pytest.FixtureRequest, runs: Runs, ran: Ran) -> FaultRuns:
    """All runs, each when it is asked for."""
    if not runs.mode:
        made = (_played(request, runs, seed) for seed in runs.seeds)
        return FaultRuns(made, ran, lambda: _seeds(runs.seeds[: ran.runs]), runs.violation)
    if request.config.option.fault_live:
        pytest.skip(f"mode {runs.mode}: only seeds can be run live")
    if runs.mode == EXHAUSTIVE:
        return _explored(runs, ran)
    from fault_lab.search.run import DEPTH, mode_of, search

    found = search(runs.plan, mode_of(runs.mode), runs=runs.bound, seed=runs.seeds[0], depth=runs.depth or DEPTH)

    def searched() -> Iterator[FaultRun]:
        for tried in found:
            yield FaultRun(
                tried.plan,
                tried.seed,
                tried.result,
                seeded=False,
                varied=tried.varied,
                expected=runs.violation,
                named=tried.seen,
            )

    return FaultRuns(searched(), ran, lambda: found.bounds, runs.violation)


def _explored(runs: Runs, ran: Ran) -> FaultRuns:
    """Every order and every placement of faults in a small world: no run where it is clean, or one that fails."""
    from fault_lab.explore.bounds import Bounds
    from fault_lab.explore.cast import ExploreError
    from fault_lab.explore.run import explore
    from fault_lab.sim.run import simulate

    ran.wanted.clear()  # states are gone through, not runs
    try:
        explored = explore(runs.plan, Bounds(states=runs.bound) if runs.bound else None)
    except ExploreError as error:
        pytest.fail(str(error), pytrace=False)

    def found() -> Iterator[FaultRun]:
        for violation in explored.violations:
            shown = explored.counterexample(violation)
            if shown is None:
                steps = "\n  ".join(explored.steps_to(violation))
                pytest.fail(f"{violation.check} does not hold: {violation.text}\n  {steps}", pytrace=False)
            result = simulate(shown.plan)
            yield FaultRun(
                shown.plan, shown.plan.seed, result, seeded=False, varied=EXHAUSTIVE, expected=runs.violation
            )
        if not explored.violations and not explored.exhausted:
            pytest.fail(explored.verdict, pytrace=False)

    return FaultRuns(found(), ran, lambda: explored.verdict, runs.violation)


def _seeds(seeds: tuple[int, ...]) -> str:
    ends = {seeds[0], seeds[-1]} if seeds else set()
    return f"{len(seeds)} seeds, {min(ends)} to {max(ends)}" if len(ends) > 1 else f"seed {min(ends, default='none')}"


def _played(request: pytest.FixtureRequest, runs: Runs, seed: int, asked: tuple[str, ...] = ()) -> FaultRun:
    made = partial(
        FaultRun, runs.plan, seed, word=runs.word, seeded=not runs.replayed, expected=runs.violation, asked=asked
    )
    if runs.recorded is not None:
        return made(_replayed(runs))
    if request.config.option.fault_live:
        return made(_live(runs, seed), live=True)
    from fault_lab.sim.run import simulate

    return made(simulate(runs.plan, seed))


def _replayed(runs: Runs) -> Any:  # noqa: ANN401 -- RunResult
    """The recorded run again: it is to go the same way, record by record."""
    from fault_lab.sim.record import replay

    assert runs.recorded is not None, "a recorded run was read"
    again = replay(runs.recorded)
    if again.divergence is not None:
        pytest.fail(f"record {again.divergence} differs\n  was {again.was}\n  now {again.now}", pytrace=False)
    return again.result


def _live(runs: Runs, seed: int) -> Any:  # noqa: ANN401 -- LiveResult
    """The plan on real processes; one that cannot be had live is skipped."""
    from fault_lab.live.possible import check_possible
    from fault_lab.live.run import run_live
    from fault_lab.plan.problem import PlanError

    try:
        check_possible(runs.plan, runs.word or "plan")
    except PlanError as error:
        pytest.skip(str(error))
    with tempfile.TemporaryDirectory(prefix="fpstated-live-") as folder:
        return run_live(runs.plan, Path(folder), seed)
