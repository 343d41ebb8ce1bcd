"""Planted bugs: each is found by some seed of the storm within so many runs, and by a check that speaks of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fault_lab.plan.load import load_plan
from fault_lab.sim.run import simulate
from fault_lab.sim.shrink import Shrinker
from tests.sim.mutants import MUTANTS, lost_park

STORM = load_plan((Path(__file__).parent / "storm.yaml").read_text(encoding="utf-8"), "storm.yaml")


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug is planted, seeds are tried in their order, and the first violation is one of those that name it."""
    mutant = MUTANTS[name]
    mutant.plant(monkeypatch)
    for seed in range(mutant.runs):
        violation = simulate(STORM, seed).violation
        if violation is not None:
            assert violation.check in mutant.checks, (seed, violation)
            return
    pytest.fail(f"{name}: not found in {mutant.runs} runs")


@pytest.mark.parametrize("seed", range(6))
def test_without_a_bug_nothing_is_found(seed: int) -> None:
    """The storm alone violates nothing, though nearly everything that it has fires."""
    result = simulate(STORM, seed)
    assert result.violation is None, f"fpstated sim run tests/sim/storm.yaml --seed {seed}"
    assert not result.cut_short
    assert len(result.fired) > 10


@pytest.mark.timeout(600)
def test_a_planted_bug_shrinks_to_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of everything that went wrong one failed allocation is left, as the bug needs no more."""
    lost_park(monkeypatch)
    seed = next(seed for seed in range(40) if simulate(STORM, seed).violation is not None)
    shrunk = Shrinker(STORM, seed, "no-stuck-exit", runs_max=300).shrink()
    assert shrunk is not None
    assert shrunk.exact
    assert [hit.point for hit in shrunk.plan.schedule.hits] == ["fpstate.realloc.alloc"]
    assert simulate(shrunk.plan).violation == shrunk.result.violation
