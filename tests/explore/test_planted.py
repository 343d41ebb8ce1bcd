"""Planted bugs that a small world can show: found by the shortest way, as a plan that fails in the simulator as well.

Two of the eight are of what a small world does not have, the simulator's modelled journal and disk: answers that do not
wait for it (ack-before-commit), and records that it loses (journal-forgets).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fault_lab.explore.bounds import Bounds
from fault_lab.explore.run import explore
from fault_lab.plan.load import load_plan
from fault_lab.plans import find_plan
from fault_lab.sim.run import simulate
from fpstated.sim.app import sim
from tests.sim.mutants import MUTANTS, double_decision

GROWTH = find_plan("small-growth").read_text(encoding="utf-8")
PROCESSES = find_plan("small-processes").read_text(encoding="utf-8")
#: Processes with two faults alone, so that every pair of them is gone through at once.
TWO = (
    PROCESSES.partition("faults:")[0]
    + """faults:
  - {name: no-memory, point: fpstate.realloc.alloc}
  - {name: host-dies, point: node.run, scope: {entity: host}, action: {kill: 100ms}}
"""
)

#: The bug, the plan, the bounds, the check, the steps to it, and the points of the plan that replays it.
FOUND = [
    ("double-decision", GROWTH, 1, "one-decision-a-generation", 10, ["fpstate.realloc.perm", "controller.decide"]),
    ("stale-epoch", PROCESSES, 1, "invariants", 3, ["node.run"]),
    ("lost-park", PROCESSES, 1, "no-stuck-exit", 10, ["fpstate.realloc.alloc"]),
    ("epochs-stand-still", PROCESSES, 1, "epochs-rise", 2, []),
    ("hidden-state", TWO, 2, "recovered-same-outcomes", 7, ["fpstate.realloc.alloc", "node.run"]),
    ("answers-again", PROCESSES, 1, "numbers-once", 6, ["link.message"]),
]


@pytest.mark.parametrize(("name", "text", "faults", "check", "steps", "points"), FOUND, ids=[each[0] for each in FOUND])
def test_a_planted_bug_is_found_and_replays(
    name: str, text: str, faults: int, check: str, steps: int, points: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check that speaks of the bug fails after so many steps, and the plan made of the path fails it by itself."""
    MUTANTS[name].plant(monkeypatch)
    liveness = ("no-stuck-exit",) if check == "no-stuck-exit" else ()
    plan = load_plan(text, name)
    explored = explore(plan, Bounds(faults=faults, symmetry=not liveness), liveness=liveness)
    found = next(each for each in explored.violations if each.check == check)
    assert len(explored.steps_to(found)) == steps
    made = explored.counterexample(found)
    assert made is not None
    assert [hit.point for hit in made.plan.schedule.hits] == points
    violation = simulate(made.plan).violation
    assert violation is not None
    assert violation.check == check


def test_the_plan_fails_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What -o writes is a plan like any other: ``sim run`` of it has status 1 and names the same check."""
    double_decision(monkeypatch)
    file = tmp_path / "found.json"
    explored = CliRunner().invoke(sim, ["explore", "small-growth", "--faults", "1", "-o", str(file)])
    assert explored.exit_code == 1
    assert f"a plan of 2 hits violates the same check in the simulator: fpstated sim run {file}" in explored.stderr
    again = CliRunner().invoke(sim, ["run", str(file)])
    assert again.exit_code == 1
    assert again.stderr.startswith("violation: one-decision-a-generation")


@pytest.mark.parametrize(("name", "faults"), [("small-growth", 1), ("small-processes", 1)])
def test_without_a_bug_nothing_is_found(name: str, faults: int) -> None:
    """The same worlds, every state of them, and what must come about does from everywhere."""
    plan = load_plan(find_plan(name).read_text(encoding="utf-8"), name)
    explored = explore(plan, Bounds(faults=faults, symmetry=False), liveness=("no-stuck-exit", "guests-end"))
    assert explored.violations == ()
    assert explored.exhausted
