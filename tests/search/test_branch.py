"""A recorded run goes another way from some record on: the same before it, and a run like any other behind it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.draw import draw_between
from fault_lab.plan.problem import PlanError
from fault_lab.sim.branch import Branched, BranchError, branch, hit_name, read_hit
from fault_lab.sim.record import Recorded, read_record, record_lines, replay
from fault_lab.sim.run import RunResult, simulate
from tests.search.plans import plan_of
from tests.sim.test_command import sim
from tests.sim.test_history import told

FIRST, STORM = plan_of("sim/first.yaml"), plan_of("sim/storm.yaml")


def recorded(plan: plan_pb2.Plan, result: RunResult) -> Recorded:
    """What `sim run --history` writes, read again."""
    return read_record("\n".join(record_lines(plan, result)))


def rest(branched: Branched) -> str:
    """The branched run from where it leaves the other, without its messages."""
    assert branched.parted is not None
    return told([line for line in branched.result.lines[branched.parted :] if '"type":"message"' not in line])


def test_a_hit_that_does_not_fire() -> None:
    """The founding failure, left out: the write is answered at once, and nobody is asked for a decision."""
    run = recorded(FIRST, simulate(FIRST))
    hit = plan_pb2.ScheduledHit(point="fpstate.realloc.alloc", entity="vms/a/vcpus/0", hit=1)
    branched = branch(run, 31, drop=[hit])
    assert rest(branched) == (
        " 33 <- 32   3099 us  vcpu     node=host vcpu=vms/a/vcpus/0 state=entered xfd=0 xcr0=393959 bytes=10752\n"
        " 35 <- 34   3894 us  ok       process=vms/a/vcpus/0 f=SubmitEvents call=8 "
        "value=done, grown from 2560 to 10752 bytes\n"
        " 36 <- 35   3894 us  invoke   process=vms/a/vcpus/0 f=SubmitEvents call=9 value=epoch 2: 2 Hlt\n"
        " 38 <- 37   4000 us  vcpu     node=host vcpu=vms/a/vcpus/0 state=outside xfd=0 xcr0=393959 bytes=10752\n"
        " 40 <- 39   4753 us  ok       process=vms/a/vcpus/0 f=SubmitEvents call=9 value=done\n"
        " 41 <- 40   4753 us  guest    node=vms/a vcpu=vms/a/vcpus/0 state=halted round=1\n"
        " 42 <- -1   4753 us  phase    phase=heal\n"
        " 43 <- -1   4753 us  phase    phase=settle\n"
    )


def test_a_hit_that_fires_once_more() -> None:
    """The retry fails as well: a second generation, a second decision."""
    run = recorded(FIRST, simulate(FIRST))
    branched = branch(run, 20, fire=[read_hit("fpstate.realloc.alloc:vms/a/vcpus/0:2", "--fire")])
    decided = [json.loads(line) for line in branched.result.lines if '"type":"decision"' in line]
    assert [each["generation"] for each in decided] == [1, 2]
    assert [each.fault for each in branched.result.fired] == ["no-memory", "branch"]
    assert branched.result.violation is None


@pytest.mark.parametrize("seed", range(4))
def test_any_branch_is_a_run_like_any_other(seed: int) -> None:
    """The storm, branched by a seed and branched again: the same up to the record, replayed to the byte, and sound."""
    run = recorded(STORM, simulate(STORM, seed))
    record = draw_between(seed, "branch", "", 1, low=0, high=len(run.lines) // 2)
    once = branch(run, record, seed=seed + 100)
    assert once.result.lines[: record + 1] == run.lines[: record + 1]
    again = recorded(once.plan, once.result)
    assert replay(again).divergence is None
    record += (len(again.lines) - record) // 2
    twice = branch(again, record, seed=seed + 200)
    assert twice.result.lines[: record + 1] == again.lines[: record + 1]
    assert replay(recorded(twice.plan, twice.result)).divergence is None
    assert (once.result.violation, twice.result.violation) == (None, None)


def test_another_seed_reaches_what_is_armed() -> None:
    """A fault of a host that fires at every second hit by chance: from other seeds other hits fire, as often."""
    plan = plan_pb2.Plan()
    plan.CopyFrom(plan_of("memory-is-short"))
    del plan.faults[:]
    plan.faults.add(name="half", point="fpstate.realloc.alloc").attributes.probability_ppm = 500_000
    run = recorded(plan, simulate(plan))
    runs = [branch(run, 100, seed=seed).result.fired for seed in range(4)]
    assert len({tuple((each.entity, each.hit) for each in fired) for fired in runs}) == 4
    assert all({each.fault for each in fired} == {"half"} for fired in runs)


def test_a_branch_before_another_takes_its_place() -> None:
    """What was to happen behind a record that is left does not."""
    once = branch(recorded(STORM, simulate(STORM)), 200, seed=2)
    twice = branch(recorded(once.plan, once.result), 100, seed=3)
    assert [each.record for each in twice.plan.branches] == [100]


@pytest.mark.parametrize(
    ("record", "fire", "drop", "complaint"),
    [
        pytest.param(9999, "", "", "record: expected 0..58, the records of the run, got 9999", id="no such record"),
        pytest.param(
            30,
            "link.message:vms/a->host:1:drop",
            "",
            "record 6 is another already: expected hits that come behind record 30",
            id="a hit of before",
        ),
        pytest.param(
            3,
            "fpstate.realloc.alloc:vms/a/vcpus/0:7",
            "",
            "fpstate.realloc.alloc:vms/a/vcpus/0:7: expected a hit that the run reaches",
            id="a hit that never comes",
        ),
        pytest.param(
            3,
            "",
            "fpstate.realloc.alloc:vms/a/vcpus/0:2",
            "fpstate.realloc.alloc:vms/a/vcpus/0:2: expected a hit that fired in the recorded run",
            id="a hit that has not fired",
        ),
        pytest.param(
            3,
            "rpc.server.reply:/fpstate.v1.VmService/CreateVm:1:UNAVAILABLE",
            "",
            "expected a point that the recorded run asks",
            id="services that nobody asks",
        ),
    ],
)
def test_a_branch_that_cannot_be_taken(record: int, fire: str, drop: str, complaint: str) -> None:
    """One sentence: what is wrong, and what was expected."""
    run = recorded(FIRST, simulate(FIRST))
    fires = [read_hit(fire, "--fire")] if fire else []
    drops = [read_hit(drop, "--drop")] if drop else []
    with pytest.raises(BranchError, match="^.*" + complaint.replace(".", r"\.")):
        branch(run, record, seed=5, fire=fires, drop=drops)


def test_a_hit_in_words() -> None:
    """With an action as a plan has it; what is none is refused."""
    hit = read_hit("link.message:host->ctl:5:{delay: 5ms}", "--fire")
    assert (hit_name(hit), hit.action.delay_action.min.ToMilliseconds()) == ("link.message:host->ctl:5", 5)
    with pytest.raises(BranchError, match="--drop: expected POINT:ENTITY:HIT"):
        read_hit("link.message:host->ctl", "--drop")
    with pytest.raises(PlanError, match="action"):
        read_hit("link.message:host->ctl:5:explode", "--fire")
    with pytest.raises(PlanError, match=r"branches\[0\].fire\[0\].entity: expected one of"):
        branch(recorded(FIRST, simulate(FIRST)), 1, fire=[read_hit("link.message:moon->ctl:5:drop", "--fire")])


def test_the_command(tmp_path: Path) -> None:
    """Where the two part; what comes out is replayed."""
    run, other = tmp_path / "run.jsonl", tmp_path / "branched.jsonl"
    sim("run", "memory-is-short", "--history", str(run))
    out, err = sim("branch", str(run), "--at", "300", "--seed", "5", "-o", str(other))
    assert err == ""
    first, was, now, figures = out.splitlines()
    assert first == "branched behind record 300; record 303 is the first that is another"
    assert was.startswith('  was {"n":303,')
    assert now.startswith('  now {"n":303,')
    assert figures.startswith("steps: ")
    out, _ = sim("replay", str(other))
    assert out.startswith("the same: ")
    _, err = sim("branch", str(run), "--at", "300", status=2)
    assert err == "fpstated sim branch: expected --seed, --fire or --drop: what is to be another\n"
