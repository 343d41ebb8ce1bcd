"""``fpstated sim search``: what it prints, and its status."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

from tests.sim.test_command import sim, stuck


def test_nothing_is_found() -> None:
    """The bounds, then the figures."""
    out, err = sim("search", "every-nth")
    assert err == ""
    assert out == (
        "no violation within bounds: seed 0, each hit alone, 8 in all, 164 steps a run at most\n"
        "runs: 9, steps: 1372, violations: 0, faults fired: 8; nothing is left to try\n"
    )


def test_a_violation_is_told_once_and_repeated(tmp_path: Path) -> None:
    """A silent controller: the check, what was varied, and a command that shows the same again."""
    path, folder = tmp_path / "stuck.yaml", tmp_path / "found"
    path.write_text(stuck().replace("rounds: 1", "rounds: 2"))
    out, err = sim("search", str(path), "--mode", "random", "--runs", "3", status=1)
    assert err.count("violation: no-stuck-exit") == 1
    assert f"  varied: seed 1\n  repeat: fpstated sim run {path} --seed 1\n" in err
    assert out.endswith("violations: 3, faults fired: 3; the bounds ended it\n")
    assert out.startswith("1 kind of violation within: seeds 1..3, ")
    for mode in ("pairs", "swarm", "pct"):
        _, err = sim("search", str(path), "--mode", mode, "--runs", "4", "--stop-at-first", status=1)
        again = shlex.split(err.splitlines()[2].removeprefix("  repeat: fpstated sim "))
        _, repeated = sim(*again, status=1)
        assert repeated.splitlines()[0] == err.splitlines()[0]
    _, err = sim("search", str(path), "--mode", "fail-nth", "-o", str(folder), status=1)
    assert f"  repeat: fpstated sim run {folder / 'first-1.json'} --seed 1\n" in err
    _, repeated = sim("run", str(folder / "first-1.json"), "--seed", "1", status=1)
    assert repeated.splitlines()[0] == err.splitlines()[0]


def test_for_machines() -> None:
    """A certificate a line, with what was varied."""
    out, err = sim("search", "growth-fails-once", "--mode", "random", "--runs", "2", "--seed", "8", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(each["varied"], each["seed"], each["verdict"]) for each in lines] == [
        ("seed 8", 8, "ok"),
        ("seed 9", 9, "ok"),
    ]
    assert err.startswith("no violation within bounds: seeds 8..9, ")


def test_words_that_cannot_be_right() -> None:
    """Status 2 and the modes."""
    _, err = sim("search", "every-nth", "--mode", "luck", status=2)
    assert err == (
        "fpstated sim search: mode: expected one of random, swarm, fail-nth, pairs, pct, exhaustive, got 'luck'\n"
    )


def test_the_exhaustive_mode_goes_over_states() -> None:
    """Every order of a small world, by the plan's own budget; its bounds are those of ``sim explore``."""
    out, _ = sim("search", "small-growth", "--mode", "exhaustive")
    assert out == sim("explore", "small-growth")[0]
    assert out.startswith("no violation within bounds: ")
    out, _ = sim("search", "small-growth", "--mode", "exhaustive", "--runs", "100", status=2)
    assert "100 states" in out


def test_progress_on_a_terminal_keeps_off_standard_output(tmp_path: Path) -> None:
    """With a bar on standard error, what is for machines still goes where standard output goes."""
    terminal, theirs = pty.openpty()
    file = tmp_path / "out.jsonl"
    words = ["search", "growth-fails-once", "--mode", "random", "--runs", "3", "--json"]
    with file.open("wb") as out:
        done = subprocess.run([sys.executable, "-m", "fpstated", "sim", *words], stdout=out, stderr=theirs, check=False)
    os.close(theirs)
    os.close(terminal)
    assert done.returncode == 0
    assert [json.loads(line)["seed"] for line in file.read_text().splitlines()] == [1, 2, 3]
