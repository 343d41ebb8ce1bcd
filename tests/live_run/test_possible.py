"""What a plan asks for that live processes do not have is said before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fault_lab.live.possible import check_possible, without_faults
from fault_lab.plan.canonical import canonical_json
from fault_lab.plan.load import load_plan
from fault_lab.plan.problem import PlanError
from fault_lab.plans import find_plan
from fpstated.cli import app


def test_a_clock_is_everybodys(tmp_path: Path) -> None:
    """Status 2, the field, the fault's name and why."""
    plan = load_plan(find_plan("killed-and-restarted").read_text())
    plan.faults[2].ClearField("scope")
    path = tmp_path / "plan.json"
    path.write_text(canonical_json(plan))
    done = CliRunner().invoke(app, ["live", "run", str(path)])
    assert done.exit_code == 2
    assert done.stderr.endswith(
        "faults[2].point: expected a point that can be reached live for clock, got node.clock: ctl "
        "has the system's clock, which is everybody's; a host's is its own\n"
    )


def test_a_fault_is_left_out() -> None:
    """`--without` makes another plan: without the fault, and without asking whether it fired."""
    plan = load_plan(find_plan("killed-and-restarted").read_text())
    plan.checks.sometimes[:] = ["fired:clock", "fired:killed"]
    left = without_faults(plan, ["clock"])
    assert [fault.name for fault in left.faults] == ["killed", "disk-full", "no-memory"]
    assert list(left.checks.sometimes) == ["fired:killed"]
    check_possible(left, "plan")
    with pytest.raises(ValueError, match="--without: expected one of killed, disk-full, clock, no-memory, got 'x'"):
        without_faults(plan, ["x"])


def test_a_hosts_clock_is_its_own_and_never_goes_back() -> None:
    """A scope that fits hosts alone is possible, and a jump back is not."""
    plan = load_plan(find_plan("killed-and-restarted").read_text())
    plan.faults[2].scope.entity = "host"
    plan.faults[2].action.clock_action.jump.FromSeconds(5)
    check_possible(plan, "plan")
    plan.faults[2].action.clock_action.jump.FromSeconds(-5)
    with pytest.raises(PlanError, match=r"for clock, got node.clock: a living clock never goes back"):
        check_possible(plan, "plan")


def test_no_journal() -> None:
    """A disk that nothing is written to cannot fail."""
    plan = load_plan(find_plan("killed-and-restarted").read_text())
    plan.topology.hosts[0].ephemeral = True
    with pytest.raises(
        PlanError, match=r"faults\[1\].point: .* for disk-full, got journal.write: no host of this plan"
    ):
        check_possible(without_faults(plan, ["clock"]), "plan")


def test_host_tasks_are_the_simulators() -> None:
    """What is played inside of a modelled kernel cannot be played by a process."""
    plan = load_plan(find_plan("growth-fails-once").read_text())
    plan.workload.preempt_ppm = 1
    with pytest.raises(
        PlanError, match=r"plan: workload\.preempt_ppm: expected nothing, as only the simulator plays it"
    ):
        check_possible(plan, "plan")
