"""Every broken version is found, by a check that speaks of it, and leaves nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from fault_lab.broken.versions import VERSIONS, UnknownVersionError, planted, what_is_broken
from fault_lab.plan.load import load_plan
from fault_lab.plans import find_plan
from fault_lab.search.run import mode_of, search
from fault_lab.sim.as_test import pytest_text
from fault_lab.sim.run import simulate

#: One guest, memory that is short at every attempt that a search lets fail, a controller that says RETRY.
MEMORY = """
api-version: fpstate.fault.v1
name: memory
seed: 1
topology:
  hosts: [{name: host}]
  vms: [{name: a}]
  controllers: [{name: ctl, policies: [retry]}]
workload:
  guests: [{mix: after-nm}]
faults:
  - {name: no-memory, point: fpstate.realloc.alloc}
"""
#: Decisions come twice, and messages late.
LATE = """
api-version: fpstate.fault.v1
name: late
seed: 1
topology:
  hosts: [{name: host}]
  vms: [{name: a, vcpus: 2}]
  controllers: [{name: ctl, policies: ["retry:tries=3,then=inject-gp"]}]
workload:
  guests: [{mix: after-nm}]
faults:
  - {name: no-memory, point: fpstate.realloc.alloc, attributes: {probability: 50%}}
  - {name: doubled, point: controller.decide, attributes: {probability: 20%}, action: duplicate}
  - {name: slow, point: link.message, attributes: {probability: 2%}, action: {delay: 1ms..10ms}}
"""
SIMULATOR = (Path(__file__).parent.parent.parent / "docs" / "simulator.md").read_text(encoding="utf-8")
PLANS = {
    "growth-fails-once": find_plan("growth-fails-once").read_text(encoding="utf-8"),
    "memory": MEMORY,
    "late": LATE,
}


@dataclass(frozen=True)
class FoundBy:
    """What finds a version: the plan, how it is searched in how many runs, the check, and a part of what it says."""

    plan: str
    mode: str
    runs: int
    check: str
    says: str


# fmt: off
FOUND = {
    "xfd-first":         FoundBy("growth-fails-once", "random", 1, "invariants", "no room for 0x40000"),
    "request-kept":      FoundBy("growth-fails-once", "random", 1, "invariants", "no_request_outside_the_loop"),
    "freed-first":       FoundBy("growth-fails-once", "random", 1, "invariants", "ledger_balances"),
    "not-saved":         FoundBy("growth-fails-once", "random", 1, "guest-sees-its-bytes", "#UD, for which there is"),
    "failure-swallowed": FoundBy("growth-fails-once", "random", 1, "one-exit-a-failure", "no exit says so"),
    "retried-once":      FoundBy("memory", "pairs", 10, "no-stuck-exit", "is applying at generation 2"),
    "any-generation":    FoundBy("late", "random", 20, "one-decision-a-generation", "for generation 1 is applied to 2"),
}
# fmt: on


def test_every_version_has_a_row() -> None:
    """None is shipped that nothing is known to find."""
    assert list(FOUND) == list(VERSIONS)


def test_the_docs_have_the_same_table() -> None:
    """Name, what is wrong, and the check, a row a version."""
    rows = re.findall(r"^\| `([\w-]+)` \| (.+?) \| `([\w-]+)` \| .+ \|$", SIMULATOR, re.MULTILINE)
    assert [(name, VERSIONS[name].what, FOUND[name].check) for name in VERSIONS] == [
        row for row in rows if row[0] in VERSIONS
    ]


@pytest.mark.parametrize("name", VERSIONS)
def test_what_finds_a_version(name: str) -> None:
    """The search of its row finds it, says what it was broken by, and is clean without it."""
    row = FOUND[name]
    plan = load_plan(PLANS[row.plan], row.plan)
    with planted(name):
        assert what_is_broken() == name
        runs = [tried.result for tried in search(plan, mode_of(row.mode), runs=row.runs, seed=1)]
    found = [result for result in runs if result.violation is not None]
    assert found, f"fpstated sim --broken {name} search {row.plan} --mode {row.mode} --runs {row.runs}"
    violation = found[0].violation
    assert violation is not None
    assert (violation.check, row.says in violation.text) == (row.check, True), violation
    assert found[0].fired, "the fault has happened"
    assert found[0].certificate["broken"] == name
    assert what_is_broken() == ""
    right = [tried.result for tried in search(plan, mode_of(row.mode), runs=row.runs, seed=1)]
    assert [result.violation for result in right] == [None] * len(right)
    assert "broken" not in right[0].certificate


def test_a_single_failure_does_not_show_what_a_pair_does() -> None:
    """Each hit alone is handled."""
    with planted("retried-once"):
        found = search(load_plan(MEMORY, "memory"), mode_of("fail-nth"), runs=100, seed=1)
        assert [tried.result.violation for tried in found] == [None, None]
    assert found.exhausted


def test_nothing_stays_planted() -> None:
    """Not after an error either; one may be planted upon another, and each takes its own out."""
    right = {name: version.where[version.key] for name, version in VERSIONS.items()}
    both = []
    with suppress(ZeroDivisionError), planted("xfd-first"), planted("any-generation"):
        both.append(what_is_broken())
        raise ZeroDivisionError
    assert both == ["xfd-first+any-generation"]
    assert {name: version.where[version.key] for name, version in VERSIONS.items()} == right
    with (
        pytest.raises(UnknownVersionError, match=r"^expected one of xfd-first, .*, got 'nothing'$"),
        planted("nothing"),
    ):
        pass


def test_a_guest_that_was_disturbed_may_fault() -> None:
    """A #GP that somebody decided on, for which a script has no answer, is no violation; an exception by itself is."""
    text = MEMORY.replace("policies: [retry]", "policies: [inject-gp]").replace("mix: after-nm", "script: SCRIPT")
    refused = load_plan(text.replace("SCRIPT", '"xsetbv 0 602e7\\nhlt\\n"'), "refused")
    result = simulate(refused)
    assert (result.violation, len(result.fired)) == (None, 1)
    assert any('"state":"faulted"' in line for line in result.lines)
    wrong = load_plan(text.replace("SCRIPT", '"xsetbv 0 1000000\\nhlt\\n"'), "wrong")
    violation = simulate(wrong).violation
    assert violation is not None
    assert violation.check == "guest-sees-its-bytes"
    assert violation.text == "vms/a: vms/a/vcpus/0: script:1: xsetbv 0 1000000: #GP, for which there is no handler"


def test_a_test_of_a_broken_version_plants_it() -> None:
    """The file that `shrink --pytest` writes fails for the version that it was found in, and says how to repeat it."""
    plan = load_plan(PLANS["growth-fails-once"], "growth-fails-once")
    with planted("xfd-first"):
        violation = simulate(plan).violation
    assert violation is not None
    text = pytest_text(plan, violation, "test_small.py", "xfd-first")
    assert "`fpstated sim --broken xfd-first run PLAN --seed 1` shows the same" in text
    names: dict[str, object] = {}
    exec(compile(text, "test_small.py", "exec"), names)  # noqa: S102 -- our own text
    with pytest.raises(AssertionError, match="room_for_what_is_enabled"):
        names["test_invariants"]()  # type: ignore[operator]
    assert what_is_broken() == ""


def test_a_command_in_a_broken_process() -> None:
    """`python -m fault_lab.broken`: the names, what it says that it is, and words that are wrong."""

    def said(*words: str, status: int) -> tuple[str, str]:
        command = [sys.executable, "-m", "fault_lab.broken", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout, done.stderr

    out, _ = said("--help", status=0)
    assert [line.split()[0] for line in out.splitlines()[-len(VERSIONS) :]] == list(VERSIONS)
    _, err = said(status=2)
    assert "python -m fault_lab.broken NAME COMMAND ..." in err
    _, err = said("nothing", "host", status=2)
    assert err == f"fault_lab.broken: expected one of {', '.join(VERSIONS)}, got 'nothing'\n"
    _, err = said("xfd-first", "sim", "run", "growth-fails-once", status=1)
    assert err.startswith("fault_lab.broken: xfd-first: XFD is committed before the room for it is there\nviolation: ")
    assert err.endswith("repeat: fpstated sim --broken xfd-first run growth-fails-once --seed 1\n")
