"""``fpstated campaign``: what each command prints, and its status."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

PLAN = str(Path(__file__).with_name("stuck.yaml"))


def campaign(*words: str, status: int = 0) -> tuple[str, str]:
    """Run the command; return its output and its errors."""
    command = [sys.executable, "-m", "fpstated", "campaign", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_a_campaign(tmp_path: Path) -> None:
    """Each kind of failure once, with a command that repeats it; the figures last; status and report say the same."""
    directory = tmp_path / "c"
    out, _err = campaign(
        "run", PLAN, "-d", str(directory), "--seeds", "1..20", "--block", "5", "--shrink", "40", status=1
    )
    first, repeat, *_others = out.splitlines()
    assert re.fullmatch(r"violation: no-stuck-exit, \d+ runs, first with seed \d+: .+", first)
    assert out.splitlines()[-1].startswith("campaign: 20 of 20 runs, steps: ")

    words = repeat.removeprefix("repeat: fpstated ").split()
    again = subprocess.run([sys.executable, "-m", "fpstated", *words], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "violation: no-stuck-exit" in again.stderr

    assert campaign("status", str(directory), status=1)[0] == out
    assert campaign("resume", str(directory), status=1)[0] == out, "nothing is left to do"
    page = tmp_path / "page.html"
    campaign("report", str(directory), "-o", str(page))
    assert first.split(": ", 2)[2] in page.read_text(encoding="utf-8")


def test_killed_and_gone_on_with(tmp_path: Path) -> None:
    """A campaign whose process is killed is gone on with, and comes to the same histories as one that was not."""
    directory, other = tmp_path / "c", tmp_path / "other"
    words = ["--seeds", "1..40", "--block", "4", "--shrink", "0", "--jobs", "2"]
    running = subprocess.Popen(
        [sys.executable, "-m", "fpstated", "campaign", "run", PLAN, "-d", str(directory), *words],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    blocks = directory / "blocks.jsonl"
    while not blocks.exists() or not blocks.read_bytes():
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    done = blocks.read_bytes().count(b"\n")
    assert 0 < done < 10, "it was killed in the middle"

    out, _err = campaign("resume", str(directory), "--shrink", "0", status=1)
    whole, _err = campaign("run", PLAN, "-d", str(other), *words, status=1)
    assert out.splitlines()[-1] == whole.splitlines()[-1]


def test_a_campaign_that_is_killed_leaves_no_workers(tmp_path: Path) -> None:
    """Standard output, which its workers have as well, is closed once all of them are gone."""
    directory = tmp_path / "c"
    command = [sys.executable, "-m", "fpstated", "campaign", "run", PLAN, "-d", str(directory), "--seeds", "1..100000"]
    running = subprocess.Popen(
        [*command, "--block", "4", "--jobs", "2"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    blocks = directory / "blocks.jsonl"
    while not blocks.exists() or not blocks.read_bytes():
        time.sleep(0.01)
    running.kill()  # it alone
    running.communicate(timeout=60)


def test_terminated(tmp_path: Path) -> None:
    """SIGTERM is an interrupt: what is done is kept."""
    directory = tmp_path / "c"
    command = [sys.executable, "-m", "fpstated", "campaign", "run", PLAN, "-d", str(directory), "--seeds", "1..100000"]
    running = subprocess.Popen(
        [*command, "--block", "4", "--jobs", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    blocks = directory / "blocks.jsonl"
    while not blocks.exists() or not blocks.read_bytes():
        time.sleep(0.01)
    running.terminate()
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said == "fpstated campaign run: interrupted; `fpstated campaign resume` goes on\n"


def test_wrong_words(tmp_path: Path) -> None:
    """One line, status 2, and nothing is made."""
    there = str(tmp_path / "c")
    cases = {
        ("run", PLAN, "-d", there, "--seeds", "5..1"): "fpstated campaign run: --seeds: expected A..B with A <= B",
        ("run", PLAN, "-d", there, "--seeds", "1..9", "--mode", "pairs"): "--mode: expected one of random",
        (
            "run",
            PLAN,
            "-d",
            there,
            "--seeds",
            "1..9",
            "--dask",
            "x",
            "--ray",
            "y",
        ): "expected --dask or --ray, got both",
        ("status", there): f"fpstated campaign status: {there}: expected a campaign, there is no campaign.json",
    }
    for words, text in cases.items():
        _out, err = campaign(*words, status=2)
        assert text in err
        assert err.count("\n") == 1
    assert not (tmp_path / "c").exists()
