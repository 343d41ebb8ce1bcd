"""A live host's clock jumps: what was to be decided within an hour is overdue at once."""

from __future__ import annotations

import json
from pathlib import Path

from fault_lab.live.run import run_live
from fault_lab.plan.load import load_plan

PLAN = """
api-version: fpstate.fault.v1
name: an-hour-later
topology:
  hosts: [{name: host, exit-deadline: 3600s, default-lease: 7200s}]
  vms: [{name: a}]
workload: {guests: [{mix: after-nm}]}
faults:
  - {name: no-memory, point: fpstate.realloc.alloc, attributes: {fail-nth: 1}}
  - name: an-hour
    point: node.clock
    scope: {entity: host, trigger: WaitOutcome request}
    attributes: {fail-nth: 1}
    action: {clock: 3601s}
phases: {settle: 60s}
checks: {sometimes: ["fired:no-memory", "fired:an-hour"]}
"""


def test_an_hour_passes_in_a_moment(tmp_path: Path) -> None:
    """The host takes its default action, which is to pause, since the deadline of the exit has passed."""
    result = run_live(load_plan(PLAN, "plan"), tmp_path, 1)
    assert result.violation is None
    assert {each.fault for each in result.fired} == {"no-memory", "an-hour"}
    exits = [each for each in map(json.loads, result.lines) if each["type"] == "exit"]
    assert [(each["state"], each["decision"], each["by"]) for each in exits] == [
        ("open", None, None),
        ("paused", "PAUSE", "deadline"),
    ]
