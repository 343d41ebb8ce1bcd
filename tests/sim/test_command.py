"""``fpstated sim``: what each command prints, and its status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FIRST = str(HERE / "first.yaml")


def sim(*words: str, text: str = "", status: int = 0) -> tuple[str, str]:
    """Run the command; return its output and its errors."""
    command = [sys.executable, "-m", "fpstated", "sim", *words]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, done.stderr


def stuck() -> str:
    """A plan whose controller is silent, and which leaves no time for the deadline: its exit stays open."""
    text = (HERE / "first.yaml").read_text().replace("policies: [retry]", "policies: [silent]")
    return text.replace(", decided-retry", "") + "phases: {chaos: 1s, settle: 1s}\n"


def test_run(tmp_path: Path) -> None:
    """The figures last; the history of a run is replayed."""
    file = tmp_path / "run.jsonl"
    out, err = sim("run", FIRST, "--twice", "--history", str(file))
    assert err == ""
    assert out.startswith("runs: 1, steps: ")
    assert out.endswith(", violations: 0, faults fired: 1\n")
    certificate = json.loads(file.read_text().splitlines()[-1])["certificate"]
    out, _ = sim("replay", str(file))
    assert out.endswith(f"sha256 {certificate['history_sha256']}\n")


def test_run_of_seeds_for_machines() -> None:
    """A certificate a line; the figures go where people look."""
    out, err = sim("run", "growth-fails-once", "--seeds", "3..5", "--json")
    assert [json.loads(line)["seed"] for line in out.splitlines()] == [3, 4, 5]
    assert err.startswith("runs: 3, steps: ")


def test_a_violation_and_the_command_that_repeats_it(tmp_path: Path) -> None:
    """Status 1, the check, what it is about, and the command; shrunk, one hit is left, which still fails."""
    path = tmp_path / "stuck.yaml"
    path.write_text(stuck())
    _, err = sim("run", str(path), status=1)
    assert "violation: no-stuck-exit at step " in err
    assert "vms/a/vcpus/0/exits/1 is open at generation 1" in err
    assert f"repeat: fpstated sim run {path} --seed 1\n" in err
    small = tmp_path / "small.json"
    _, err = sim("shrink", str(path), "-o", str(small))
    assert err.startswith("no-stuck-exit: 1 hit left after ")
    _, err = sim("run", str(small), status=1)
    assert "vms/a/vcpus/0/exits/1 is open at generation 1" in err


def test_what_was_to_be_seen_and_was_not() -> None:
    """Status 2: a fault that never fired proves nothing."""
    text = (HERE / "first.yaml").read_text().replace("fail-nth: 1", "fail-nth: 99")
    _, err = sim("run", "-", text=text, status=2)
    assert err == "never seen: fired:no-memory\nnever seen: decided-retry\n"


def test_a_budget_that_ends_a_run() -> None:
    """Status 2: what has not come to its end says nothing about the end."""
    text = (HERE / "first.yaml").read_text().split("checks:")[0] + "budget: {events: 10}\n"
    _, err = sim("run", "-", text=text, status=2)
    assert err == "seed 1: the budget ended the run, nothing is known about its end\n"


def test_words_that_are_wrong(tmp_path: Path) -> None:
    """Status 2, and what was expected."""
    cases = {
        ("run", "no-such-plan"): "expected a file or one of ",
        ("run", FIRST, "--seeds", "5..3"): "--seeds: expected A..B with A <= B",
        ("run", FIRST, "--seeds", "1..2", "--seed", "1"): "expected --seed or --seeds, got both",
        ("run", FIRST, "--seeds", "1..2", "--history", str(tmp_path / "x")): "expected one seed with --history",
        ("replay", FIRST): f"{FIRST}: line 1: not JSON",
        ("shrink", FIRST): "seed 1 violates nothing",
    }
    for words, complaint in cases.items():
        _, err = sim(*words, status=2)
        assert complaint in err, words
    _, err = sim("run", "-", text=(HERE / "first.yaml").read_text().replace("decided-retry", "decided-well"), status=2)
    assert "checks.sometimes: expected one of decided-defer" in err
