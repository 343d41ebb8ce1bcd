"""``python -m tests.planted`` in short: the healthy code is clean, some bugs are found, and what is missed is said.

All of them in all modes are the long command; docs/planted.md has its tables.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fault_lab.plan.load import load_plan
from fault_lab.sim.rules import ALWAYS, EVENTUALLY
from fault_lab.sim.run import unknown_checks
from tests.museum.mutant import ROOT, source_of
from tests.museum.mutants import MUTANTS
from tests.planted import __main__ as command
from tests.planted.bug import PLANS, Bug
from tests.planted.bugs import BUGS
from tests.planted.modes import MODES
from tests.planted.outcome import Bounds, Find, Tally, Trial
from tests.planted.report import lines_of, mode_table

CONTROL_PLANE = [bug for bug in BUGS.values() if bug.id not in MUTANTS]


@pytest.mark.timeout(600)
def test_the_command_in_short() -> None:
    """Three bugs of three themes: each is found, shrunk, and found again by the command that is printed."""
    done = _planted("lost-gp", "refused-and-there", "B18", "--modes", "random", "--runs", "8", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    heads = [line.partition("  ")[0] for line in lines]
    assert [re.sub(r"\d+", "N", head) for head in heads] == [
        "control:decisions: clean, N runs",
        "control:limits: clean, N runs",
        "control:state: clean, N runs",
        "lost-gp: decision-is-done; random N; N faults left",
        "",
        "refused-and-there: refused-changes-nothing; random N; N faults left",
        "",
        "BN: invariants; random N; N faults left",
        "",
        "mode",
        "random",
        "planted: N, caught: N, median faults: N",
    ]
    assert lines[-1] == "planted: 3, caught: 3, median faults: 1"
    repeat = lines[6].removeprefix("    repeat: python -m tests.planted ").split()
    again = _planted(*repeat)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"refused-and-there: refused-changes-nothing; random {repeat[4]}; 1 faults left" in again.stdout


@pytest.mark.timeout(600)
def test_a_bug_that_is_not_found_is_status_1() -> None:
    """The first run of a fail-nth sweep has no fault, and without one a lost park is not seen."""
    done = _planted("lost-park", "--modes", "fail-nth", "--runs", "1")
    assert done.returncode == 1
    assert "lost-park: NOT CAUGHT  no mode finds it" in done.stdout
    assert done.stdout.splitlines()[-1] == "planted: 1, caught: 0, median faults: -"


def test_what_the_healthy_code_is_found_guilty_of_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is planted where something was found without."""
    tried = []

    def trials(names: list[str], _bounds: Bounds, _jobs: int) -> Iterator[Trial]:
        tried.extend(names)
        find = Find(mode="pct", runs=4, check="numbers-once", text="twice", plan="decisions", varied="seed 4")
        return iter([Trial(name=names[0], finds=(find,))])

    monkeypatch.setattr(command, "_trials", trials)
    assert command.main(["lost-gp"]) == 1
    assert tried == ["control:decisions", "control:small-growth", "control:small-processes"]
    assert capsys.readouterr().out == "control:decisions: pct, seed 4: numbers-once: twice\n"


def test_wrong_words_are_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    """No such bug, no such mode: each is named, with what there is."""
    assert command.main(["lost-prak", "--modes", "random,rando"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("planted: no bug 'lost-prak'; there are double-decision, ")
    assert said[1] == f"planted: no mode 'rando'; there are {', '.join(MODES)}"


def test_what_trials_add_up_to() -> None:
    """The fewest faults of any mode count for a bug, the median of those for the command."""
    bounds = Bounds(modes=("random", "pct"), runs=9, shrink=5)
    found = Find(mode="random", runs=4, check="final-once", plan="links", faults=5)
    sooner = Find(mode="pct", runs=2, check="final-once", plan="links", faults=3)
    missed = Find(mode="random", runs=9, plan="links")
    trials = [
        Trial(name="final-told-twice", finds=(found, sooner)),
        Trial(name="lost-park", finds=(missed, sooner), seconds=1.0),
        Trial(name="stale-view", finds=(missed,)),
    ]
    assert [trial.faults for trial in trials] == [3, 3, None]
    assert list(lines_of(trials[1], bounds)) == [
        "lost-park: final-once; random -, pct 2; 3 faults left  1.0 s",
        "    repeat: python -m tests.planted lost-park --modes pct --runs 2 --seed 1",
    ]
    assert list(mode_table(Tally(trials), bounds.modes)) == [
        "mode        found             median runs   median faults",
        "random      1 of 3, 33 %      4             5",
        "pct         2 of 3, 67 %      2             3",
    ]
    assert Tally(trials).line == "planted: 3, caught: 2, median faults: 3"
    assert [Tally(some).status(faults) for some, faults in ((trials, 3), (trials[:2], 3), (trials[:2], 2))] == [1, 0, 1]
    assert Trial.from_json(trials[0].to_json()) == trials[0]
    json.loads(trials[0].to_json())


@pytest.mark.parametrize("bug", CONTROL_PLANE, ids=lambda bug: bug.id)
def test_a_bug_still_applies(bug: Bug) -> None:
    """Each old text is in its module exactly once, what comes of it still is Python; checks and plan are there."""
    for module in bug.modules():
        path, source = source_of(module)
        mutated = bug.mutate(module, source)
        assert mutated != source
        compile(mutated, str(path), "exec")
    assert bug.checks
    assert bug.checks <= ALWAYS.keys() | EVENTUALLY.keys()
    assert bug.plan in PLANS


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_can_be_run(name: str) -> None:
    """It is read, and its checks are known."""
    plan = load_plan(PLANS[name].read_text(encoding="utf-8"), name)
    assert (plan.name, unknown_checks(plan)) == (name, [])


def test_every_check_has_a_bug() -> None:
    """A check that no bug needs has not been shown to find one; that of moves has its own in tests/sim."""
    needed = frozenset[str]().union(*(bug.checks for bug in BUGS.values()))
    assert ALWAYS.keys() - needed == {"one-owner"}


def test_the_docs_name_every_bug() -> None:
    """docs/planted.md has each bug with what is wrong."""
    text = (ROOT / "docs" / "planted.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+?) \| ", text, re.MULTILINE))
    assert rows == {bug.id: bug.title for bug in BUGS.values()}


def _planted(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.planted", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
