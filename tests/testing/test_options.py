"""The options, on one suite; what is wrong with them is said before anything runs."""

from __future__ import annotations

import re

from tests.testing.suite import Suite, suite

pytest_plugins = ["pytester"]
__all__ = ["suite"]

SEEDS = """
@pytest.mark.fpstate_faults("growth-fails-once", seeds="1..3")
def test_it(fpstate_run):
    assert fpstate_run.violation is None
"""


def test_a_seed_that_is_given_goes_before_those_of_the_marker(suite: Suite) -> None:
    """It stands in the header, and in the name of the test."""
    suite.write(SEEDS)
    ran = suite.run("-v", "--fault-seed", "41")
    assert "fault seed: 41" in ran.outlines
    assert any("::test_it[seed-41] PASSED" in line for line in ran.outlines)


def test_a_seed_that_is_drawn_is_said(suite: Suite) -> None:
    """With the option that repeats it, which does."""
    suite.write(SEEDS)
    ran = suite.run("--fault-seed", "random", "--fault-plan=stuck.yaml")
    (said,) = (line for line in ran.outlines if line.startswith("fault seed: "))
    found = re.fullmatch(r"fault seed: (\d+) \(drawn; --fault-seed \1 repeats it\)", said)
    assert found is not None
    again = suite.run("-v", "--fault-seed", found[1], "--fault-plan=stuck.yaml")
    assert any(f"::test_it[seed-{found[1]}]" in line for line in again.outlines)
    assert again.parseoutcomes() == ran.parseoutcomes()


def test_a_plan_that_is_given_goes_before_that_of_the_marker(suite: Suite) -> None:
    """A failure says so in its command."""
    suite.write(SEEDS)
    said = suite.says("--fault-plan=stuck.yaml", "--fault-seed", "1")
    assert "plan stuck (stuck.yaml), seed 1: 139 steps" in said
    assert "repeat: pytest test_guest.py::test_it --fault-plan=stuck.yaml --fault-seed 1\n" in said


def test_the_ini_file_says_the_same(suite: Suite) -> None:
    """Plan, seed and artefacts; paths are relative to the file."""
    suite.write(SEEDS)
    with (suite.path / "pytest.ini").open("a") as ini:
        ini.write("fault_plan = stuck.yaml\nfault_seed = 1\nfault_artifacts = kept\nfault_shrink = 80\n")
    suite.run().assert_outcomes(failed=1)
    written = {path.name for path in (suite.path / "kept" / "test_guest.py-test_it-seed-1").iterdir()}
    assert written >= {"plan.json", "history.jsonl", "small.json", "test_small.py"}


def test_with_v_the_summary_counts(suite: Suite) -> None:
    """Runs, steps, violations, faults that fired; without it, nothing is added to what pytest says."""
    suite.write(SEEDS)
    assert "test_guest.py::test_it: runs: 3, steps: 492, violations: 0, faults fired: 3\n" in suite.says("-v")
    assert "fault" not in suite.says()


def test_a_plan_is_run_live(suite: Suite) -> None:
    """On real processes; a plan that cannot be had live, and a search, say so and are skipped."""
    suite.write("""
CLOCK = dict(name="clock", point="node.clock", action=dict(clock_action=dict(jump="1s")))
THERE = dict(hosts=[dict(name="host")], vms=[dict(name="a")])

@pytest.mark.fpstate_faults("growth-fails-once")
def test_live(fpstate_run):
    assert fpstate_run.live
    assert [hit.fault for hit in fpstate_run.fired] == ["no-memory"]

@pytest.mark.fpstate_faults(dict(topology=THERE, faults=[CLOCK]))
def test_clock(fpstate_run):
    pass

@pytest.mark.fpstate_faults("growth-fails-once", mode="fail-nth")
def test_search(fpstate_runs):
    pass
""")
    ran = suite.run("--fault-live", "-rs")
    ran.assert_outcomes(passed=1, skipped=2)
    ran.stdout.fnmatch_lines(
        ["*got node.clock: vms/a has the system's clock*", "*fail-nth: only seeds can be run live"]
    )


def test_words_that_cannot_be_right_are_refused(suite: Suite) -> None:
    """One line each, with what was expected."""
    suite.write(SEEDS)
    for words, complaint in {
        (
            "--fault-seed",
            "x",
        ): "argument --fault-seed: expected a number of 0 to 18446744073709551615, or random, got 'x'",
        ("--fault-shrink", "test_guest.py"): "--fault-shrink=RUNS, or the option behind the paths, got 'test_guest.py'",
        (
            "--fault-replay=x",
            "--fault-seed=1",
        ): "--fault-replay: expected neither --fault-seed nor --fault-plan beside it",
        ("--fault-replay=nowhere",): "fpstate_faults: --fault-replay: [Errno 2] No such file or directory",
        ("--fault-replay=stuck.yaml",): "--fault-replay: expected a recorded run, or a plan without chance, got ",
        ("--fault-plan=nowhere",): "fpstate_faults: --fault-plan: expected a file or one of cut-off, ",
    }.items():
        ran = suite.run(*words)
        assert ran.ret != 0
        assert complaint in ran.stdout.str() + ran.stderr.str()
