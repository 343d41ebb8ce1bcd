"""``fpstated sim``: what each command prints, and its status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from fpstated.cli import app

HERE = Path(__file__).parent
FIRST = str(HERE / "first.yaml")


def sim(*words: str, text: str = "", status: int = 0) -> tuple[str, str]:
    """Run the command in this process; return its output and its errors."""
    done = CliRunner().invoke(app, ["sim", *words], input=text, catch_exceptions=False)
    assert done.exit_code == status, done.output
    return done.stdout, done.stderr


def stuck() -> str:
    """A plan whose controller is silent, and which leaves no time for the deadline: its exit stays open."""
    text = (HERE / "first.yaml").read_text().replace("policies: [retry]", "policies: [silent]")
    return text.replace(", decided-retry", "") + "phases: {chaos: 1s, settle: 1s}\n"


def test_run(tmp_path: Path) -> None:
    """The figures last; the history of a run is replayed."""
    file = tmp_path / "run.jsonl"
    command = [sys.executable, "-m", "fpstated", "sim", "run", FIRST, "--twice", "--history", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    out, err = done.stdout, done.stderr
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
        ("run", FIRST, "--seed", "-1"): "Invalid value for '--seed': expected 0 to 18446744073709551615, got -1",
        ("run", FIRST, "--seed", str(2**64)): f"expected 0 to 18446744073709551615, got {2**64}",
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


def test_files_that_are_wrong(tmp_path: Path) -> None:
    """Status 2, with the name of the file: no text, a directory, not there, cut off."""
    run, cut, bytes_ = tmp_path / "run.jsonl", tmp_path / "cut.jsonl", tmp_path / "bytes"
    sim("run", FIRST, "--history", str(run))
    cut.write_text("".join(run.read_text().splitlines(keepends=True)[:20]))
    bytes_.write_bytes(b"name: \xff")
    for words, complaint in {
        ("run", str(bytes_)): f"fpstated sim run: {bytes_}: expected text in UTF-8, got byte 0xff",
        ("replay", str(bytes_)): f"fpstated sim replay: {bytes_}: expected text in UTF-8, got byte 0xff",
        ("replay", str(tmp_path)): f"fpstated sim replay: {tmp_path}: Is a directory",
        ("replay", "nowhere"): "fpstated sim replay: nowhere: No such file or directory",
        ("replay", str(cut)): f"{cut}: line 20: expected the certificate, which ends a file: this one was cut off",
        ("diff", str(run)): f"{run}: expected the history of a live run",
        ("diff", str(cut)): f"{cut}: line 20: expected the certificate",
    }.items():
        _, err = sim(*words, status=2)
        assert complaint in err, words


def test_standard_input_and_output() -> None:
    """A history goes to standard output alone, and the next command reads it."""
    out, err = sim("run", FIRST, "--history", "-")
    assert err.startswith("runs: 1, steps: ")
    assert sim("replay", "-", text=out)[0].startswith("the same: ")


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    """It is found out before the run, and what was there stays; a full disk is named with its file."""
    for words, complaint in {
        ("--history", str(tmp_path)): f"{tmp_path}: expected a file, got a directory",
        ("--history", str(tmp_path / "no" / "x")): f"expected {tmp_path / 'no'} to be a directory",
        ("--seeds", "1..2", "--history", "/dev/full"): "expected one seed with --history",
        ("--history", "/dev/full"): "/dev/full: No space left on device",
    }.items():
        out, err = sim("run", FIRST, *words, status=2)
        assert (out, complaint in err) == ("", True), err
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fpstated", "sim", "run", FIRST], stdout=full, stderr=-1, check=False
        )
    assert done.returncode == 2
    assert done.stderr.endswith(b": No space left on device\n")


def test_a_reader_who_has_seen_enough() -> None:
    """``| head -1``: the rest goes nowhere, and nobody complains."""
    command = [sys.executable, "-m", "fpstated", "sim", "run", FIRST, "--seeds", "1..1000", "--json"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    with running.stderr as said:
        assert said.read() == b""
    assert running.wait() == 0


def test_interrupted() -> None:
    """Ctrl-C: a line and status 130."""
    command = [sys.executable, "-m", "fpstated", "sim", "run", FIRST, "--seeds", "1..1000000", "--json"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert running.stdout is not None
    assert running.stdout.readline().startswith(b"{"), "it runs"
    running.send_signal(signal.SIGINT)
    _, said = running.communicate()
    assert (running.returncode, said) == (130, b"fpstated sim run: interrupted\n")
