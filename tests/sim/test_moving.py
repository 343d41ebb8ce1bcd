"""VMs that move between simulated hosts: whoever ends between two steps, each has one owner and nothing is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fpstate.fault.v1 import plan_pb2

from fault_lab.plan.load import load_plan
from fault_lab.plan.problem import PlanError
from fault_lab.sim.migration import Migration
from fault_lab.sim.mover import MoverNode
from fault_lab.sim.run import RunResult, simulate
from fault_lab.sim.task import Task
from host_agent import arriving
from host_agent.image_form import unpack_image

MOVING = load_plan((Path(__file__).parent / "moving.yaml").read_text(encoding="utf-8"), "moving.yaml")
ONE = """
api-version: fpstate.fault.v1
name: one-move
topology:
  hosts: [{name: one}, {name: two}]
  vms: [{name: a}]
workload:
  guests: [{mix: after-nm, rounds: 3, think-time: 10ms}]
  migrations: [{name: op, vm: a, target: two, after: 50ms}]
"""
RUNS = 10


@cache
def run(seed: int) -> RunResult:
    """One run of the plan in which nearly everything happens to moves."""
    return simulate(MOVING, seed)


def plan_of(text: str) -> plan_pb2.Plan:
    """A plan of these lines."""
    return load_plan(text, "plan")


def records(result: RunResult) -> list[dict[str, Any]]:
    """The records of a run."""
    return [json.loads(line) for line in result.lines]


def test_a_vm_moves_step_by_step() -> None:
    """The driver's calls in their order, and the guest goes on at the target."""
    result = simulate(plan_of(ONE))
    assert result.violation is None
    mine = [each for each in records(result) if each.get("process") == "op" and each["type"] == "invoke"]
    calls = [f"{each['f']} {each['value']}" for each in mine]
    name = calls[-1].partition(" ")[2]
    assert calls == [
        "ListMigrations vms/a",
        "ListMigrations vms/a",
        "BeginMigration vms/a",
        "ListMigrations vms/a",
        "ExportVm vms/a",
        f"ImportVm {name}",
        f"StageMigration {name}",
        f"CommitMigration {name}",
        f"CommitMigration {name}",
    ]
    assert [each["host"] for each in records(result) if each.get("state") == "follows"] == ["two"]


@pytest.mark.parametrize(("who", "events"), [("op", 9), ("one", 8), ("two", 8)])
def test_whoever_ends_the_vm_has_one_owner_and_arrives(who: str, events: int) -> None:
    """The driver, the source and the target are killed at each of their events of the move, in turn."""
    killed = 0
    while True:
        fault = (
            f"faults: [{{name: ends, point: node.run, scope: {{entity: {who}}}, action: {{kill: 200ms}}, "
            f"window: {{after: 50ms, until: 60ms}}, attributes: {{fail-nth: {killed + 1}}}}}]\n"
            "phases: {settle: 600s}\n"
        )
        result = simulate(plan_of(ONE + fault))
        assert result.violation is None, killed + 1
        if not result.fired:
            break
        killed += 1
    assert killed >= events


@pytest.mark.parametrize("link", ["op->one", "one->op", "op->two", "two->op"])
@pytest.mark.parametrize("hit", range(1, 4))
def test_a_driver_that_is_cut_off_from_a_side_finishes_later(link: str, hit: int) -> None:
    """A partition between the driver and either host, each way, behind each of its first messages there."""
    fault = (
        f"faults: [{{name: cut, point: link.message, scope: {{entity: {link}}}, action: {{hold: 30s}}, "
        f"attributes: {{fail-nth: {hit}}}}}]\nphases: {{settle: 600s}}\n"
    )
    result = simulate(plan_of(ONE + fault))
    assert result.violation is None
    assert len(result.fired) == 1


@pytest.mark.parametrize("seed", range(RUNS))
def test_nothing_is_violated_whatever_happens_to_moves(seed: int) -> None:
    """Memory is short, hosts, drivers and agents end, links hold and lose: every check holds."""
    result = run(seed)
    assert result.violation is None, f"fpstated sim run tests/sim/moving.yaml --seed {seed}"
    assert not result.cut_short


def test_all_of_it_has_happened() -> None:
    """Every fault has fired, and each agent has followed its VM, by calls and on a stream."""
    found = [each for seed in range(RUNS) for each in records(run(seed))]
    fired = {each.fault for seed in range(RUNS) for each in run(seed).fired}
    assert fired == {fault.name for fault in MOVING.faults}
    assert {each["node"] for each in found if each.get("state") == "follows"} == {"vms/a", "vms/b"}
    assert {"PAUSE", "RESUME"} <= {each["kind"] for each in found if each["type"] == "directive"}


def test_a_target_that_takes_a_drivers_word_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver who forgets the source, and a target that wants no proof: both own the VM."""

    def staged_alone(self: MoverNode, ours: Migration) -> Task:
        yield from self._staged(ours)
        return ours

    monkeypatch.setattr(MoverNode, "_commit_source", staged_alone)
    monkeypatch.setattr(arriving, "_check_committed", lambda _record, _proof: None)
    found = simulate(plan_of(ONE)).violation
    assert found is not None
    assert (found.check, found.text) == ("one-owner", "vms/a is owned by one and two")


def test_a_target_that_forgets_a_number_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image whose vCPU goes on at the event before the last."""

    def older(raw: bytes) -> Any:  # noqa: ANN401 -- the image
        image = unpack_image(raw)
        return replace(
            image, vcpus=tuple(replace(each, next_seq=each.next_seq - 1, outcomes=()) for each in image.vcpus)
        )

    monkeypatch.setattr(arriving, "unpack_image", older)
    found = simulate(plan_of(ONE)).violation
    assert found is not None
    assert found.check == "acknowledged-is-there"


def test_a_row_names_a_vm_once_and_a_host_that_it_is_not_on() -> None:
    """What is wrong with a row, each with its field."""
    rows = "[{name: op, vm: a, target: one}, {name: op, vm: a, target: two}, {name: q, vm: c, target: two}]"
    with pytest.raises(PlanError) as error:
        plan_of(ONE.replace("[{name: op, vm: a, target: two, after: 50ms}]", rows))
    text = str(error.value)
    assert "workload.migrations[0].target: expected a host that the VM is not on: two, got 'one'" in text
    assert "workload.migrations[1].vm: expected a VM that no row before moves, got 'a'" in text
    assert "workload.migrations[1].name: expected a name of its own, got 'op'" in text
    assert "workload.migrations[2].vm: expected one of a, got 'c'" in text
