"""The marker's arguments: what they make, and what is said where they cannot be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.testing.suite import Suite, suite

pytest_plugins = ["pytester"]
__all__ = ["suite"]

TINY = Path(__file__).parent.parent / "explore" / "tiny.yaml"


MADE = {
    "a shipped plan, and its own seed": ('"growth-fails-once"', "seed-1"),
    "one seed": ('"growth-fails-once", seeds=7', "seed-7"),
    "a range, both ends in it": ('"growth-fails-once", seeds="3..5"', "seed-3 seed-4 seed-5"),
    "a range of Python's": ('"growth-fails-once", seeds=range(2)', "seed-0 seed-1"),
    "a list, in its order": ('"growth-fails-once", seeds=[9, 4]', "seed-9 seed-4"),
    "so many from the plan's seed on": ('"growth-fails-once", runs=3', "seed-1 seed-2 seed-3"),
    "a mapping": ("PLAN", "seed-0"),
    "a message": ("MESSAGE", "seed-0"),
    "a check by name": ("PLAN, checks='guests-end'", "seed-0"),
    "a check that must fail": ('"stuck.yaml", violation="no-stuck-exit"', "seed-1"),
}
PLAN = """
from fpstated.testing.plans import read_plan

THERE = dict(hosts=[dict(name="host")], vms=[dict(name="a")])
PLAN = dict(topology=THERE, workload=dict(guests=[dict(mix="after-nm")]))
MESSAGE = read_plan(PLAN, None).plan
"""


def test_tests_are_made(suite: Suite) -> None:
    """One test a seed, named after it, and each passes."""
    tests = [
        f"@pytest.mark.fpstate_faults({arguments})\ndef test_{nr}(fpstate_run):\n    assert fpstate_run.history\n"
        for nr, (arguments, _) in enumerate(MADE.values())
    ]
    suite.write(PLAN + "\n".join(tests))
    ran = suite.run("-v")
    passed = [line.partition("::")[2].split("]")[0] for line in ran.outlines if " PASSED" in line]
    wanted = [f"test_{nr}[{seed}" for nr, (_, seeds) in enumerate(MADE.values()) for seed in seeds.split()]
    assert passed == wanted
    ran.assert_outcomes(passed=len(wanted))


WRONG = {
    "": "plan: expected one, in the marker or with --fault-plan",
    '"nowhere.yaml"': "plan: expected a file or one of cut-off, ",
    "7": "plan: expected a path, the name of a shipped plan, a mapping or a Plan, got 7",
    "dict(name='Not a name')": "plan:1:",
    '"cut-off", seed=1': "seed: expected one of the arguments plan, seeds, ",
    '"cut-off", seeds="1-5"': "seeds: expected a number, a list of numbers, a range, or",
    '"cut-off", seeds=True': "seeds: expected a number, a list of numbers, a range, or",
    '"cut-off", seeds=[]': "seeds: expected 1 to 100000 seeds",
    '"cut-off", seeds=[1, 1]': "seeds: expected 1 to 100000 seeds, each once",
    '"cut-off", seeds=range(1 << 60)': "seeds: expected 1 to 100000 seeds",
    '"cut-off", seeds=-1': "seeds: expected a number",
    '"cut-off", seeds=[1], runs=2': "runs: expected a mode with it, or no seeds",
    '"cut-off", runs="2"': "runs: expected a number of 1 to 100000, got '2'",
    '"cut-off", mode="pct"': "mode: expected a test that asks for fpstate_runs",
    '"cut-off", mode=7': "mode: expected a text, got 7",
    '"cut-off", depth=2': "depth: expected the mode pct with it",
    '"cut-off", checks="nothing"': "checks: expected some of invariants, ",
    '"cut-off", checks=7': "checks: expected the name of a check",
    '"cut-off", violation="x"': "violation: expected one of invariants, ",
    '"cut-off", "stuck.yaml"': "expected one argument without a name, the plan, got 2",
}


def test_a_wrong_argument_is_a_collection_error(suite: Suite) -> None:
    """It names the test and the argument, and says what was expected; nothing is run."""
    for nr, arguments in enumerate(WRONG):
        test = f"@pytest.mark.fpstate_faults({arguments})\ndef test_it(fpstate_run):\n    pass\n"
        (suite.path / f"test_{nr:02}.py").write_text(f"import pytest\n\n{test}")
    ran = suite.run()
    ran.assert_outcomes(errors=len(WRONG))
    said = [line.partition("::test_it: fpstate_faults: ")[2] for line in ran.outlines if line.startswith("test_")]
    assert len(said) == len(WRONG)
    for complaint, wanted in zip(said, WRONG.values(), strict=True):
        assert complaint.startswith(wanted)


@pytest.mark.parametrize(
    ("fixtures", "got"), [("", "neither"), ("fpstate_run, fpstate_runs", "both")], ids=["neither", "both"]
)
def test_one_of_the_fixtures_is_asked_for(suite: Suite, fixtures: str, got: str) -> None:
    """A marker that would do nothing, or two things, is a mistake."""
    suite.write(f"""
@pytest.mark.fpstate_faults("cut-off")
def test_it({fixtures}):
    pass
""")
    assert f"expected a test that asks for fpstate_run or fpstate_runs, got {got}" in suite.says()


def test_an_unknown_mode_is_named(suite: Suite) -> None:
    """With the modes that there are."""
    suite.write("""
@pytest.mark.fpstate_faults("cut-off", mode="nonsense")
def test_it(fpstate_runs):
    pass
""")
    said = suite.says()
    assert "fpstate_faults: mode: expected one of random, swarm, fail-nth, " in said
    assert "got 'nonsense'" in said


def test_searches_are_gone_through(suite: Suite) -> None:
    """Each mode makes its runs in one test, and says what was looked at."""
    suite.write("""
import pytest

def searched(mode):
    @pytest.mark.fpstate_faults("growth-fails-once", mode=mode, runs=3, checks="decided-retry-after")
    def test_it(fpstate_runs):
        assert 2 <= len(list(fpstate_runs)) <= 3
        assert "seed" in fpstate_runs.bounds

    return test_it

test_random, test_swarm, test_nth, test_pairs, test_pct = map(searched, ("random", "swarm", "fail-nth", "pairs", "pct"))
""")
    suite.run().assert_outcomes(passed=5)


def test_a_small_world_is_explored(suite: Suite) -> None:
    """Clean: no run to go through, and every state was met. Cut by its bound, it says nothing, and fails."""
    (suite.path / "tiny.yaml").write_text(TINY.read_text())
    suite.write("""
@pytest.mark.fpstate_faults("tiny.yaml", mode="exhaustive")
def test_clean(fpstate_runs):
    assert list(fpstate_runs) == []
    assert fpstate_runs.bounds.endswith("the space is exhausted")

@pytest.mark.fpstate_faults("tiny.yaml", mode="exhaustive", runs=2)
def test_cut(fpstate_runs):
    list(fpstate_runs)
""")
    said = suite.says("-v")
    assert "test_clean[exhaustive-seed-1] PASSED" in said
    assert "; cut by states\n" in said


def test_a_class_says_what_its_tests_do_not(suite: Suite) -> None:
    """The marker that is nearest goes first."""
    suite.write("""
@pytest.mark.fpstate_faults("growth-fails-once", seeds=[1, 2])
class TestGuests:
    def test_one(self, fpstate_run):
        assert fpstate_run.plan.name == "growth-fails-once"

    @pytest.mark.fpstate_faults(seeds=5)
    def test_other(self, fpstate_history):
        assert fpstate_history.of("guest")
""")
    ran = suite.run("-v")
    ran.assert_outcomes(passed=3)
    assert any("TestGuests::test_other[seed-5] PASSED" in line for line in ran.outlines)


def test_what_is_never_seen_fails_a_single_run_and_is_said_of_many(suite: Suite) -> None:
    """Seed 5 of the plan has no fault: alone that fails; of two seeds it is enough that one has it."""
    suite.write("""
@pytest.mark.fpstate_faults("stuck.yaml", seeds=5, checks="fired:no-memory")
def test_alone(fpstate_run):
    pass

@pytest.mark.fpstate_faults("stuck.yaml", seeds=[5, 6], checks="fired:no-memory")
def test_many(fpstate_run):
    pass
""")
    said = suite.says()
    assert "never seen: fired:no-memory" in said
    assert "test_guest.py::test_many: never seen in 2 runs: fired:no-memory" in said
