"""Processes that are killed, stopped and started again, a disk that fails, a wire that is slow: nothing is violated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fault_lab.live.judge import read
from fault_lab.live.run import run_live
from fault_lab.plan.load import load_plan

PLAN = Path(__file__).with_name("storm.yaml")


def test_everything_at_once(tmp_path: Path) -> None:
    """Each fault fires, each process comes back, what was acknowledged is there, and every guest comes to its end."""
    plan = load_plan(PLAN.read_text())
    result = run_live(plan, tmp_path)
    records = [read(line) for line in result.lines]
    assert result.violation is None, result.violation
    assert set(plan.checks.sometimes) <= result.seen
    states = Counter((each["node"], each["state"]) for each in records if each["type"] == "node")
    assert states["host", "killed"] == states["vms/a", "killed"] == 1
    assert states["host", "ended with status 1"] == 1  # as the sync that failed says
    assert states["host", "started"] == 3
    assert states["host", "recovered"] == 2
    assert states["ctl", "paused"] == states["ctl", "goes on"] == 1
    # The vCPUs' endings are those of the rounds that were played, however often the agent began anew.
    rounds = {(each["vcpu"], each["round"]) for each in records if each["type"] == "guest" and "vcpu" in each}
    assert rounds == {(f"vms/a/vcpus/{index}", nr) for index in (0, 1) for nr in (1, 2, 3, 4)}
