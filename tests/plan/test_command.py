"""``fpstated faults``: what each command prints, and its status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fault_lab.injection.points import FAULT_POINTS
from fault_lab.plan.load import load_plan
from fault_lab.plans import find_plan

BAD = "api-version: fpstate.fault.v1\nname: x\nfaults: [{name: f, point: fpstate.realloc.aloc}]\n"


def faults(*words: str, text: str = "", status: int = 0) -> tuple[str, str]:
    """Run the command; return its output and its errors."""
    command = [sys.executable, "-m", "fpstated", "faults", *words]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def test_list() -> None:
    """A line a point; for machines, all that is known."""
    lines, _ = faults("list")
    assert [line.split()[0] for line in lines.splitlines()] == list(FAULT_POINTS)
    rows = json.loads(faults("list", "--json")[0])
    assert rows[1]["name"] == "fpstate.realloc.alloc"
    assert set(rows[1]) == {"name", "error", "seat", "errnos", "actions", "entity", "where", "caller", "unchanged"}


def test_check_says_the_hash_and_warns(tmp_path: Path) -> None:
    """A good plan: its hash. One that could never fire: a warning beside it."""
    out, err = faults("check", "growth-fails-once")
    (digest,) = faults("hash", "growth-fails-once")[0].split()
    assert (out, err) == (f"growth-fails-once: 1 faults, sha256 {digest}\n", "")
    never = tmp_path / "never.yaml"
    never.write_text(find_plan("growth-fails-once").read_text().replace("{fail-nth: 1}", "{times: 0}"))
    out, err = faults("check", str(never))
    expected = "expected -1 or more than 0, or it never fires, got 0"
    assert err == f"warning: {never}: faults[0].attributes.times: {expected}\n"


def test_check_of_a_bad_plan() -> None:
    """Status 2, and a line a mistake, with its place."""
    _, err = faults("check", "-", text=BAD, status=2)
    assert err.splitlines() == [
        "stdin:1:1: topology.hosts: expected at least one host, got none",
        "stdin:1:1: topology.vms: expected at least one VM, got none",
        "stdin:3:27: faults[0].point: expected a fault point such as fpstate.realloc.alloc, got 'fpstate.realloc.aloc'",
    ]


def test_check_of_checks_that_nobody_has() -> None:
    """What no run would accept is a mistake here too."""
    text = find_plan("growth-fails-once").read_text() + "  always: [invariant]\n"
    _, err = faults("check", "-", text=text, status=2)
    assert err.startswith("fpstated faults check: checks.always: expected one of ack-after-commit, ")
    assert err.endswith("got 'invariant'\n")


def test_check_of_an_action_that_has_no_fields() -> None:
    """What is expected is said, though there is nothing to choose from."""
    text = find_plan("growth-fails-once").read_text().replace("fail-nth: 1}", "fail-nth: 1}\n    action: {drop: 1}")
    _, err = faults("check", "-", text=text, status=2)
    assert "faults[0].action.drop_action: expected an empty mapping, {}, got '1'" in err


def test_show() -> None:
    """The JSON reads back to the same plan; the canonical form is what is hashed."""
    plan = load_plan(find_plan("cut-off").read_text())
    assert load_plan(faults("show", "cut-off")[0]) == plan
    canonical, _ = faults("show", "cut-off", "--canonical")
    assert load_plan(canonical) == plan
    assert "\n" not in canonical


def test_export() -> None:
    """The script to standard output, the warnings beside it."""
    script, err = faults("export", "memory-is-short", "--linux", "--fault", "short")
    assert script.startswith("#!/bin/sh\n")
    assert "warning: short: a kernel's chance has no seed" in err
    assert faults("export", "memory-is-short", status=2)[1].endswith("expected --linux, the one target there is\n")
    assert "there is no fault 'nobody'" in faults("export", "every-nth", "--linux", "--fault", "nobody", status=2)[1]


@pytest.mark.parametrize("command", ["check", "show", "hash"])
def test_a_plan_that_is_not_there(command: str) -> None:
    """Says which there are."""
    assert "expected a file or one of cut-off, every-nth" in faults(command, "nope", status=2)[1]


def test_schema_and_plans() -> None:
    """Both print what they are called for."""
    assert json.loads(faults("schema")[0])["title"] == "fpstated plan"
    assert "growth-fails-once" in faults("plans")[0]
