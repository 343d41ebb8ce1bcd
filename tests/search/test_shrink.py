"""Shrinking to the end: how little is left of a storm, of an order, of times; and the test that is made of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fpstate.fault.v1 import fault_pb2, plan_pb2

from fault_lab.plan.canonical import readable_json
from fault_lab.plan.load import load_plan
from fault_lab.search.run import search
from fault_lab.sim.run import simulate
from fault_lab.sim.schedule import as_schedule
from fault_lab.sim.shrink import Shrinker
from fault_lab.sim.smaller import fewer, rounder, weaker
from tests.search.plans import lost_wake_up, plan_of
from tests.sim.mutants import lost_park
from tests.sim.test_command import sim, stuck

STORM, WAKEUP = plan_of("sim/storm.yaml"), plan_of("search/wakeup.yaml")


@pytest.mark.timeout(600)
def test_what_is_left_of_a_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 21 faults, two VMs and 34 events: one VM, one vCPU, at most five events, and one failed allocation."""
    lost_park(monkeypatch)
    storm = plan_pb2.Plan()
    storm.CopyFrom(STORM)
    storm.phases.settle.duration.FromSeconds(20)
    shrunk = Shrinker(storm, 2, "deadline-kept").shrink()
    assert shrunk is not None
    assert shrunk.exact
    plan = shrunk.plan
    assert not plan.faults
    assert [(hit.point, hit.entity) for hit in plan.schedule.hits] == [("fpstate.realloc.alloc", "vms/b/vcpus/0")]
    assert [(vm.name, vm.vcpus) for vm in plan.topology.vms] == [("b", 1)]
    assert [guest.random.events for guest in plan.workload.guests] in ([5], [4], [3])
    assert not plan.HasField("phases")
    assert not plan.workload.guests[0].HasField("think_time")
    assert not plan.topology.hosts[0].HasField("exit_deadline")
    assert simulate(load_plan(readable_json(plan))).digest == shrunk.result.digest


def test_what_is_left_of_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many steps out of the order of time those are left that the bug needs: the guest's message is late."""
    lost_wake_up(monkeypatch)
    found = next(
        each for each in search(WAKEUP, plan_pb2.SEARCH_MODE_PCT, runs=40, seed=1, depth=2) if each.result.violation
    )
    assert len(found.result.deviations) > 5
    shrunk = Shrinker(found.plan, found.seed, "guests-end", runs_max=400).shrink()
    assert shrunk is not None
    assert shrunk.exact
    assert not shrunk.plan.order.HasField("priorities")
    assert len(shrunk.plan.order.deviations) <= 4
    assert len(shrunk.plan.schedule.hits) == 1
    assert simulate(shrunk.plan).violation == shrunk.result.violation
    monkeypatch.undo()
    assert simulate(shrunk.plan).violation is None


def action(**kind: object) -> fault_pb2.FaultAction:
    """An action of one kind."""
    return fault_pb2.FaultAction(**kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("point", "what", "instead"),
    [
        pytest.param("node.run", {"kill_action": {}}, ["pause_action", "kill_action"], id="a kill"),
        pytest.param("link.message", {"corrupt_action": {"bits": 3}}, ["delay_action", "drop_action"], id="a frame"),
        pytest.param("link.message", {"drop_action": {}}, ["delay_action"], id="a loss"),
        pytest.param("link.message", {"delay_action": {"min": {"seconds": 1}}}, [], id="what is late already"),
        pytest.param("fpstate.realloc.alloc", {"errno_action": {"errno_value": 12}}, [], id="an errno"),
    ],
)
def test_weaker_actions(point: str, what: dict[str, object], instead: list[str]) -> None:
    """From bad to less bad, and never to something worse."""
    plan = plan_pb2.Plan(schedule=plan_pb2.Schedule(hits=[plan_pb2.ScheduledHit(point=point, action=action(**what))]))
    assert [each.schedule.hits[0].action.WhichOneof("kind") for each in weaker(plan)] == instead


def test_what_speaks_of_a_vm_goes_with_it() -> None:
    """Its controller, its rows and its hits: every smaller plan can be run."""
    plan = plan_pb2.Plan()
    plan.CopyFrom(STORM)
    plan.schedule.hits.add(point="fpstate.realloc.alloc", entity="vms/b/vcpus/0", hit=1)
    without_b = next(each for each in fewer(plan) if [vm.name for vm in each.topology.vms] == ["a"])
    assert [each.name for each in without_b.topology.controllers] == ["ctl"]
    assert not without_b.schedule.hits


def test_rounder_times() -> None:
    """A time is left out, or has one digit."""
    there = "{hosts: [{name: h, exit-deadline: 1.234s}], vms: [{name: a}]}"
    plan = load_plan(f"{{api-version: fpstate.fault.v1, name: p, topology: {there}}}")
    deadlines = [each.topology.hosts[0] for each in rounder(plan)]
    assert {host.exit_deadline.ToMilliseconds() for host in deadlines} == {1234, 1000, 0}


def test_what_a_schedule_holds_is_let_go_when_everything_is_mended() -> None:
    """A link that is held until the plan heals carries again in the run that is written out, too."""
    plan = plan_of("sim/first.yaml")
    held = plan.faults.add(name="held", point="link.message", scope=fault_pb2.FaultScope(entity="host->ctl"))
    held.attributes.fail_nth = 3
    held.action.hold_action.SetInParent()
    plan.phases.chaos.duration.FromSeconds(2)
    plan.phases.settle.duration.FromSeconds(10)
    result = simulate(plan)
    assert [each.fault for each in result.fired] == ["no-memory", "held"]
    assert result.violation is None
    again = simulate(as_schedule(plan, 1, result.fired))
    assert (len(again.fired), again.violation) == (2, None)


def test_a_test_is_made(tmp_path: Path) -> None:
    """The file fails by itself under plain pytest, and shows the plan and what is violated."""
    path, test = tmp_path / "stuck.yaml", tmp_path / "test_stuck.py"
    path.write_text(stuck())
    out, err = sim("shrink", str(path), "--pytest", str(test))
    assert out == ""
    assert err.startswith("no-stuck-exit: 1 hit left after ")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Found(check='no-stuck-exit', text='vms/a/vcpus/0/exits/1 is open at generation 1'" in done.stdout
    assert '"point": "fpstate.realloc.alloc"' in test.read_text()
