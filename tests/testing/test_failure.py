"""What a violation looks like: the whole output of suites whose plan is silent, with too short a settle."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from fault_lab.plan.load import load_plan
from fault_lab.sim.record import read_record, replay
from fault_lab.sim.run import simulate
from tests.testing.suite import Suite, suite

pytest_plugins = ["pytester"]
__all__ = ["suite"]

SEEDS = """
@pytest.mark.fpstate_faults(plan="stuck.yaml", seeds=[5, 1])
def test_no_exit_stays_open(fpstate_run):
    assert fpstate_run.violation is None
"""

WHOLE = """\
test_guest.py::test_no_exit_stays_open[seed-5] PASSED                    [ 50%]
test_guest.py::test_no_exit_stays_open[seed-1] FAILED                    [100%]

== FAILURES ==
__ test_no_exit_stays_open[seed-1] __
no-stuck-exit does not hold, at step 139, 2.000000 s: vms/a/vcpus/1/exits/9 is open at generation 1
-- fault run --
plan stuck (stuck.yaml), seed 1: 139 steps, 2.000000 s, 1 fault fired
  no-memory: fpstate.realloc.alloc, hit 1 of vms/a/vcpus/1: FailErrno(errno=12)
repeat: pytest test_guest.py::test_no_exit_stays_open --fault-seed 1
        fpstated sim run stuck.yaml --seed 1
artefacts: TMP/fault-artifacts/test_guest.py-test_no_exit_stays_open-seed-1
  plan.json, history.jsonl, timeline.html
== fault runs ==
test_guest.py::test_no_exit_stays_open: runs: 2, steps: 303, violations: 1, faults fired: 1
1 failed, 1 passed
"""


def test_the_whole_output(suite: Suite) -> None:
    """One seed of two violates: what does not hold, what fired, the two commands that show it again, and the files."""
    suite.write(SEEDS)
    assert suite.says("-v") == WHOLE


def test_what_it_says_to_repeat_repeats(suite: Suite) -> None:
    """The command of the failure runs that seed alone, and fails alike."""
    suite.write(SEEDS)
    again = suite.says("test_guest.py::test_no_exit_stays_open", "--fault-seed", "1", "-v")
    assert "test_no_exit_stays_open[seed-1] FAILED" in again
    assert "no-stuck-exit does not hold, at step 139" in again
    assert again.endswith("1 failed\n")


def test_a_test_that_fails_by_itself_has_the_section_too(suite: Suite) -> None:
    """Also where every check holds, and the test wanted more."""
    suite.write("""
@pytest.mark.fpstate_faults("growth-fails-once")
def test_more(fpstate_run, fpstate_history):
    assert fpstate_run.fired[0].fault == "no-memory"
    assert len(fpstate_history.of("fault")) == 2
""")
    said = suite.says()
    assert "assert 1 == 2" in said
    assert (
        "repeat: pytest test_guest.py::test_more --fault-seed 1\n        fpstated sim run growth-fails-once --seed 1"
        in said
    )


def test_a_test_that_awaits_is_judged_alike(suite: Suite) -> None:
    """Its run is over before its first line, on the loop or not."""
    suite.write("""
@pytest.mark.asyncio
@pytest.mark.fpstate_faults("stuck.yaml", seeds=[5, 1])
async def test_it(fpstate_run):
    assert fpstate_run.violation is None
""")
    said = suite.says("-v")
    assert "test_it[seed-5] PASSED" in said
    assert "__ test_it[seed-1] __\nno-stuck-exit does not hold" in said


def test_the_artefacts_are_the_run(suite: Suite, tmp_path: Path) -> None:
    """The history replays, record by record; the plan beside it is the one that ran."""
    suite.write(SEEDS)
    suite.run(f"--fault-artifacts={tmp_path}/kept")
    folder = tmp_path / "kept" / "test_guest.py-test_no_exit_stays_open-seed-1"
    recorded = read_record((folder / "history.jsonl").read_text())
    assert replay(recorded).divergence is None
    assert recorded.plan == load_plan((folder / "plan.json").read_text())
    assert not (tmp_path / "kept" / "test_guest.py-test_no_exit_stays_open-seed-5").exists()


def test_a_failing_run_is_made_small(suite: Suite, tmp_path: Path) -> None:
    """The small plan has the one hit that it takes, fails by itself, and so does the test beside it."""
    suite.write(SEEDS)
    said = suite.says(f"--fault-artifacts={tmp_path}", "--fault-seed", "7", "--fault-shrink=300")
    assert "\nsmall: 1 hit after " in said
    folder = tmp_path / "test_guest.py-test_no_exit_stays_open-seed-7"
    small = load_plan((folder / "small.json").read_text())
    assert [hit.point for hit in small.schedule.hits] == ["fpstate.realloc.alloc"]
    found = simulate(small).violation
    assert found is not None
    assert found.check == "no-stuck-exit"
    with pytest.raises(AssertionError, match="no-stuck-exit"):
        runpy.run_path(str(folder / "test_small.py"))["test_no_stuck_exit"]()


def test_a_recorded_run_is_replayed(suite: Suite, tmp_path: Path) -> None:
    """``--fault-replay`` runs that and nothing else, whatever the marker's seeds are."""
    suite.write(SEEDS)
    suite.run(f"--fault-artifacts={tmp_path}")
    file = tmp_path / "test_guest.py-test_no_exit_stays_open-seed-1" / "history.jsonl"
    said = suite.says("-v", f"--fault-replay={file}")
    assert said.startswith("test_guest.py::test_no_exit_stays_open[replay] FAILED")
    assert "at step 139, 2.000000 s: vms/a/vcpus/1/exits/9 is open at generation 1" in said


def test_a_schedule_is_replayed(suite: Suite, tmp_path: Path) -> None:
    """A small plan is a schedule: it runs as it stands."""
    suite.write(SEEDS)
    suite.run(f"--fault-artifacts={tmp_path}", "--fault-shrink=100")
    small = tmp_path / "test_guest.py-test_no_exit_stays_open-seed-1" / "small.json"
    said = suite.says("-v", f"--fault-replay={small}")
    assert "test_no_exit_stays_open[replay] FAILED" in said
    assert f"fpstated sim run {small} --seed 1" in said
    assert "repeat: pytest test_guest.py::test_no_exit_stays_open --fault-replay=" in said


def test_a_record_that_goes_another_way_is_named(suite: Suite, tmp_path: Path) -> None:
    """What was recorded and what happens now: the first record that differs fails the test."""
    suite.write(SEEDS)
    suite.run(f"--fault-artifacts={tmp_path}")
    file = tmp_path / "test_guest.py-test_no_exit_stays_open-seed-1" / "history.jsonl"
    lines = file.read_text().splitlines()
    head = json.loads(lines[0])
    (tmp_path / "other.jsonl").write_text("\n".join([json.dumps({**head, "seed": 2}), *lines[1:]]))
    said = suite.says(f"--fault-replay={tmp_path}/other.jsonl")
    assert " differs\n  was {" in said


def test_a_record_of_a_broken_version_is_refused(suite: Suite, tmp_path: Path) -> None:
    """Nothing is broken here, so what was recorded with ``--broken`` cannot be replayed."""
    suite.write(SEEDS)
    suite.run(f"--fault-artifacts={tmp_path}")
    file = tmp_path / "test_guest.py-test_no_exit_stays_open-seed-1" / "history.jsonl"
    head, _, rest = file.read_text().partition("\n")
    (tmp_path / "broken.jsonl").write_text(json.dumps({**json.loads(head), "broken": "xfd-first"}) + "\n" + rest)
    said = suite.says(f"--fault-replay={tmp_path}/broken.jsonl")
    assert "it was recorded with --broken xfd-first: expected the same here, got nothing broken" in said


def test_a_world_says_where_it_stands(suite: Suite, tmp_path: Path) -> None:
    """At which step, and what would have happened next; the test is what repeats it."""
    suite.write("""
def test_it(fpstate_world):
    world = fpstate_world("growth-fails-once")
    world.step()
    assert world.exits
""")
    said = suite.says(f"--fault-artifacts={tmp_path}")
    where = "world growth-fails-once, seed 1, after step 1 at 0.000058 s, next: host: CreateVm request"
    assert f"\n-- fault world --\n{where}\n" in said
    written = sorted(path.name for path in (tmp_path / "test_guest.py-test_it" / "world-0").iterdir())
    assert written == ["history.jsonl", "plan.json"]


def test_a_search_is_repeated_by_its_record(suite: Suite) -> None:
    """No seed makes the run of a search: its record does."""
    suite.write("""
@pytest.mark.fpstate_faults("stuck.yaml", mode="fail-nth")
def test_each_hit(fpstate_runs):
    for run in fpstate_runs:
        assert len(run.fired) < 2
""")
    said = suite.says()
    assert "__ test_each_hit[fail-nth-seed-1] __\nno-stuck-exit does not hold" in said
    assert "repeat: pytest test_guest.py::test_each_hit --fault-replay=TMP/fault-artifacts/" in said
