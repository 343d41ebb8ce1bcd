"""The storm, in which nearly everything goes wrong at once, violates nothing. What bugs do in it: tests/planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from fault_lab.plan.load import load_plan
from fault_lab.sim.run import simulate

STORM = load_plan((Path(__file__).parent / "storm.yaml").read_text(encoding="utf-8"), "storm.yaml")


@pytest.mark.parametrize("seed", range(6))
def test_without_a_bug_nothing_is_found(seed: int) -> None:
    """The storm alone violates nothing, though nearly everything that it has fires."""
    result = simulate(STORM, seed)
    assert result.violation is None, f"fpstated sim run tests/sim/storm.yaml --seed {seed}"
    assert not result.cut_short
    assert len(result.fired) > 10
