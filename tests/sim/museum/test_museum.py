"""Host tasks in the simulated world: healthy runs are clean, every act happens, and bugs of the museum show.

That every one of them does is the long command, ``python -m tests.sim.museum``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fault_lab.plan.acts import ACTS
from fault_lab.plan.load import load_plan
from fault_lab.sim.acts import PLAYED
from fault_lab.sim.rules import ALWAYS
from fault_lab.sim.run import RunResult, simulate, simulate_twice
from tests.museum.mutants import MUTANTS
from tests.sim.museum.__main__ import searched
from tests.sim.museum.table import HERE, SHOWN, plans_for

PLANS = sorted(HERE.glob("*.yaml"))
EACH = pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)


def run(path: Path, seed: int) -> RunResult:
    """One run of a plan."""
    return simulate(load_plan(path.read_text(encoding="utf-8"), path.name), seed)


def acts_done(result: RunResult) -> set[str]:
    """The commands of host tasks that were carried out."""
    records = map(json.loads, result.lines)
    return {record["act"] for record in records if record["type"] == "task" and record["result"] == "done"}


def test_every_mutant_has_its_plan_and_checks_that_there_are() -> None:
    """The table is whole, and names what exists."""
    assert set(SHOWN) == set(MUTANTS)
    for name, shown in SHOWN.items():
        assert shown.checks <= set(ALWAYS)
        assert plans_for(name) == (shown.path,)
        assert shown.path in PLANS


def test_every_act_that_a_plan_may_name_is_played() -> None:
    """What the plan's reader takes and what the simulator plays are the same."""
    assert set(PLAYED) == set(ACTS)


@EACH
def test_the_healthy_core_is_clean(path: Path) -> None:
    """Nothing is violated, every row comes to its end, and something was done."""
    for seed in range(3):
        result = run(path, seed)
        assert result.violation is None, f"fpstated sim run tests/sim/museum/{path.name} --seed {seed}"
        assert not result.cut_short
        assert acts_done(result)


def test_one_seed_is_one_run() -> None:
    """Tasks, preemption, a host that ends and comes back: the same again, to the byte of the history."""
    path = HERE / "killed.yaml"
    simulate_twice(load_plan(path.read_text(encoding="utf-8"), path.name), 5)


def test_a_host_comes_back_with_its_tasks() -> None:
    """Hosts have died and their disks were full, and each record has led to the same outcome, each log to its host."""
    fired = [each.fault for seed in range(4) for each in run(HERE / "killed.yaml", seed).fired]
    assert {"host-dies", "disk-full", "no-memory"} <= set(fired)


def test_everything_is_done_by_somebody() -> None:
    """Over some seeds of the plan that draws from all acts, every kind of command is carried out."""
    done = {act for seed in range(12) for act in acts_done(run(HERE / "tasks.yaml", seed))}
    commands = {
        *("CreateTask", "CloneTask", "ExecTask", "ExitTask", "ScheduleTask", "PreemptTask", "UseFeature", "ArchPrctl"),
        *("SetAltstack", "EnableShadowStack", "DeliverSignal", "EditFrame", "SwapOutFrame", "SigReturn"),
        *("PtraceGet", "PtraceSet", "CreateWorker", "KernelFpu", "Interrupt", "IdleCpu", "OfflineCpu", "OnlineCpu"),
        *("SuspendHost", "CreateVcpu", "DeleteVcpu", "SetCpuid", "SetXsave", "SetXcrs", "SetMsrs", "ResetVm"),
    }
    assert done == commands


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["B4", "B13", "B15", "B35", "B40"])
def test_a_bug_of_the_museum_shows_in_a_run(name: str) -> None:
    """With the bug in the core, a simulated run violates a check that speaks of it."""
    found = searched(name)
    assert found.get("check") in SHOWN[name].checks, found
