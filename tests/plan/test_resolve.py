"""A plan made ready for a run: seeds by name, who is picked, phases, the budget, and explicit schedules."""

from __future__ import annotations

import pytest
from fpstate.fault.v1 import plan_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from fault_lab.injection.action import Drop, FailErrno
from fault_lab.injection.draw import subseed
from fault_lab.injection.hit import Hit
from fault_lab.plan.entities import links, nodes
from fault_lab.plan.load import load_plan
from fault_lab.plan.resolve import PHASES, RunFaults, pick, planned_faults

SMALL = """\
api-version: fpstate.fault.v1
name: small
topology:
  hosts: [{name: host}]
  vms: [{name: a, vcpus: 4}, {name: b}]
  controllers: [{name: ctl}, {name: spare}]
"""
GROW = "fpstate.realloc.alloc"


def run(text: str, seed: int = 1) -> RunFaults:
    """The faults of a run, in the middle of chaos."""
    made = RunFaults(load_plan(SMALL + text), seed)
    made.enter("chaos")
    return made


def hits(made: RunFaults, count: int, entity: str = "vms/a/vcpus/0", point: str = GROW) -> list[str]:
    """Which fault fired at each of so many hits, by its name; empty for none."""
    fired = [made.hit(Hit(point=point, entity=entity, vm="vms/a", size_bytes=10_816)) for _ in range(count)]
    return [fault.name if fault is not None else "" for fault in fired]


def test_seeds_come_from_names() -> None:
    """Each fault has a seed of its own, made from the run's and its name; one that is written wins."""
    text = f"faults: [{{name: f, point: {GROW}}}, {{name: g, point: {GROW}, attributes: {{seed: 77}}}}]\n"
    f, g = (each.fault for each in planned_faults(load_plan(SMALL + text), 5))
    assert f.attributes.seed == subseed(5, "fault/f")
    assert g.attributes.seed == 77
    assert f.action == FailErrno(12)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, (1 << 64) - 1), st.sets(st.sampled_from(["b", "c", "d"])))
def test_leaving_faults_out_moves_no_other(seed: int, left_out: set[str]) -> None:
    """The hits at which a fault fires are the same whatever other faults are there, in whatever order."""
    rows = {
        name: f"  - {{name: {name}, point: {point}, attributes: {{probability: {percent}}}}}\n"
        for name, point, percent in (("a", GROW, 40), ("b", GROW, 70), ("c", "fpstate.guest.alloc", 50), ("d", GROW, 5))
    }

    def fires(names: list[str]) -> list[bool]:
        made = RunFaults(load_plan(f"{SMALL}faults:\n{''.join(rows[name] for name in names)}"), seed)
        made.enter("chaos")
        fault = made.table.armed["a"]
        before, seen = 0, []
        for nr in range(30):
            entity = f"vms/a/vcpus/{nr % 4}"
            made.hit(Hit(point="fpstate.guest.alloc", entity=entity, size_bytes=2_624))
            made.hit(Hit(point=GROW, entity=entity, size_bytes=10_816))
            seen.append(fault.fired > before)
            before = fault.fired
        return seen

    assert fires(["a", "b", "c", "d"]) == fires([name for name in ("d", "c", "a", "b") if name not in left_out])


def test_phases() -> None:
    """A fault is armed in its phases, chaos where it names none; what was counted stays counted."""
    made = RunFaults(
        load_plan(
            f"{SMALL}faults:\n  - {{name: f, point: {GROW}, attributes: {{times: 3}}}}\n"
            f"  - {{name: g, point: {GROW}, phases: [warm, settle]}}\n"
        )
    )
    seen: dict[str, list[str]] = {}
    for phase in (*PHASES, "chaos"):
        made.enter(phase)
        seen[phase] = seen.get(phase, []) + hits(made, 2)
    assert seen == {"warm": ["g", "g"], "chaos": ["f", "f", "f", ""], "heal": ["", ""], "settle": ["g", "g"]}
    assert made.fired == {"f": 3, "g": 4}


def test_the_budget() -> None:
    """No more fire than it has, unless the plan says to go over it; then the run says that it did."""
    fault = f"faults: [{{name: f, point: {GROW}}}]\n"
    within = run(f"{fault}budget: {{faults: 2}}\n")
    assert hits(within, 4) == ["f", "f", "", ""]
    assert not within.over_budget
    beyond = run(f"{fault}budget: {{faults: 2, over-budget: true}}\n")
    assert hits(beyond, 4) == ["f"] * 4
    assert beyond.over_budget


def test_a_schedule_is_exactly_its_hits() -> None:
    """The second hit of one vCPU and the first of another, whatever else comes; in every phase."""
    made = run(
        "schedule:\n  hits:\n"
        f"    - {{point: {GROW}, entity: vms/a/vcpus/0, hit: 2}}\n"
        f"    - {{point: {GROW}, entity: vms/a/vcpus/1, hit: 1}}\n"
        "    - {point: link.message, entity: host->ctl, hit: 3, action: drop}\n"
    )
    assert hits(made, 3) == ["", "hit-1", ""]
    made.enter("settle")
    assert hits(made, 2, "vms/a/vcpus/1") == ["hit-2", ""]
    assert hits(made, 3, "host->ctl", "link.message") == ["", "", "hit-3"]
    assert made.planned[2].fault.action == Drop()


# -- picking -----------------------------------------------------------------------------------------------------------


def test_who_is_there() -> None:
    """Nodes and links follow from the topology: guests and controllers talk to their host."""
    plan = load_plan(SMALL)
    assert nodes(plan) == ["host", "ctl", "spare", "vms/a", "vms/b"]
    assert links(plan) == [
        *("vms/a->host", "host->vms/a", "vms/b->host", "host->vms/b"),
        *("ctl->host", "host->ctl", "spare->host", "host->spare"),
    ]


@pytest.mark.parametrize(
    ("how", "percent", "counts"),
    [
        ("PICK_ALL", 0, [0, 1, 2, 3, 4, 5]),
        ("PICK_ONE", 0, [0, 1, 1, 1, 1, 1]),
        ("PICK_MINORITY", 0, [0, 1, 1, 1, 1, 2]),
        ("PICK_MAJORITY", 0, [0, 1, 2, 2, 3, 3]),
        ("PICK_PERCENT", 50, [0, 1, 1, 2, 2, 3]),
    ],
)
def test_how_many_are_picked(how: str, percent: int, counts: list[int]) -> None:
    """Of none to five names."""
    names = ["a", "b", "c", "d", "e"]
    number = plan_pb2.Pick.Value(how)
    assert [len(pick(names[:there], number, percent, 9)) for there in range(6)] == counts


def test_picking_is_drawn() -> None:
    """Other seeds pick others, and each name has its turn; the same seed the same, in the order of the plan."""
    names = [f"n{nr}" for nr in range(5)]
    picked = {tuple(pick(names, plan_pb2.PICK_MINORITY, 0, seed)) for seed in range(200)}
    assert {name for each in picked for name in each} == set(names)
    assert all(list(each) == sorted(each) for each in picked)
    assert pick(names, plan_pb2.PICK_ONE, 0, 3) == pick(names, plan_pb2.PICK_ONE, 0, 3)


def test_a_picked_vcpu_is_the_one_that_fails() -> None:
    """One vCPU of a VM, drawn once a run; the others are left alone."""
    hit = set()
    for seed in range(40):
        made = run(f"faults: [{{name: f, point: {GROW}, scope: {{entity: 'vms/a/*'}}, pick: one}}]\n", seed)
        failing = [index for index in range(4) if hits(made, 1, f"vms/a/vcpus/{index}") == ["f"]]
        assert len(failing) == 1
        hit.update(failing)
    assert hit == {0, 1, 2, 3}


def test_a_picked_side_is_cut_off() -> None:
    """At a link, nodes are picked: what crosses from a picked node to another or back is meant, and nothing else."""
    made = run("faults: [{name: f, point: link.message, pick: minority, action: drop}]\n", 4)
    (planned,) = made.planned
    cut = planned.fault.selector.among
    there = nodes(load_plan(SMALL))
    sides = {name for name in there if name != "host" and {f"{name}->host", f"host->{name}"} <= set(cut)}
    assert cut
    assert set(cut) == {way for name in sides for way in (f"{name}->host", f"host->{name}")}


def test_one_way_of_a_cut() -> None:
    """A pattern leaves one direction."""
    text = "faults: [{name: f, point: link.message, scope: {entity: 'host->*'}, pick: majority, action: drop}]\n"
    for seed in range(20):
        (planned,) = run(text, seed).planned
        assert all(link.startswith("host->") for link in planned.fault.selector.among)


def test_nobody_picked_is_nobody_hit() -> None:
    """A pattern that leaves no link of those that are cut concerns nobody, not everybody."""
    text = "faults: [{name: f, point: link.message, scope: {entity: 'ctl->host'}, pick: one, action: drop}]\n"
    seen = set()
    for seed in range(40):
        made = run(text, seed)
        seen.add(tuple(hits(made, 1, link, "link.message")[0] for link in ("ctl->host", "vms/a->host")))
    assert seen == {("f", ""), ("", "")}
