"""The storm, in which nearly everything goes wrong at once, violates nothing. What bugs do in it: tests/planted."""

from __future__ import annotations

import json
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


def test_a_host_that_ends_as_its_disk_is_full() -> None:
    """Killed between going back to what is durable and arming its faults again: it comes back as it was."""
    plan = load_plan(
        (Path(__file__).parents[1] / "planted/plans/restarts.yaml").read_text(encoding="utf-8"), "restarts"
    )
    result = simulate(plan, 89)
    states = [json.loads(line) for line in result.lines if '"type":"node","node":"host"' in line]
    full = next(nr for nr, each in enumerate(states) if each["state"] == "disk full")
    assert [each["state"] for each in states[full : full + 4]] == ["disk full", "recovered", "killed", "lost"]
    assert states[full]["t"] == states[full + 2]["t"]
    assert result.violation is None
