"""``--broken`` of ``fpstated sim`` and ``fpstated live``: what is said, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fault_lab.broken.versions import VERSIONS, what_is_broken
from fpstated.cli import app

PLAN = "growth-fails-once"


def fpstated(*words: str, status: int = 0) -> tuple[str, str]:
    """Run the command in this process, which is healthy afterwards; return its output and its errors."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == status, done.output
    assert what_is_broken() == ""
    return done.stdout, done.stderr


@pytest.mark.parametrize("group", ["sim", "live"])
def test_words(group: str) -> None:
    """`list` shows every name; another name is refused with them."""
    out, _ = fpstated(group, "--broken", "list")
    assert [line.split()[0] for line in out.splitlines()] == list(VERSIONS)
    _, err = fpstated(group, "--broken", "nothing", "run", PLAN, status=2)
    assert err == f"fpstated {group} --broken: expected one of {', '.join(VERSIONS)}, got 'nothing'\n"


def test_what_ran_broken_says_so(tmp_path: Path) -> None:
    """Head, certificate, the line that repeats it, and the picture; only the same version replays or branches it."""
    broken, right = tmp_path / "broken.jsonl", tmp_path / "right.jsonl"
    _, err = fpstated("sim", "--broken", "xfd-first", "run", PLAN, "--history", str(broken), status=1)
    assert err.splitlines()[-1] == f"repeat: fpstated sim --broken xfd-first run {PLAN} --seed 1"
    head, *_, last = broken.read_text().splitlines()
    assert json.loads(head)["broken"] == json.loads(last)["certificate"]["broken"] == "xfd-first"
    fpstated("sim", "timeline", str(broken), "-o", str(tmp_path / "still.svg"))
    assert "simulated run, rules sim 3, broken: xfd-first, seed 1" in (tmp_path / "still.svg").read_text()

    refused = f"{broken}: it was recorded with --broken xfd-first: expected the same here, got "
    for words in (["replay", str(broken)], ["branch", str(broken), "--at", "5", "--seed", "2"]):
        _, err = fpstated("sim", *words, status=2)
        assert err == f"fpstated sim {words[0]}: {refused}nothing broken\n"
        _, err = fpstated("sim", "--broken", "not-saved", *words, status=2)
        assert err == f"fpstated sim {words[0]}: {refused}not-saved\n"
    out, _ = fpstated("sim", "--broken", "xfd-first", "replay", str(broken))
    assert out.startswith("the same: ")

    fpstated("sim", "run", PLAN, "--history", str(right))
    assert '"broken"' not in right.read_text()
    _, err = fpstated("sim", "--broken", "xfd-first", "replay", str(right), status=2)
    assert err.endswith("it was recorded without --broken: expected the same here, got xfd-first\n")


def test_a_search_and_an_exploration_repeat_what_is_broken(tmp_path: Path) -> None:
    """The version belongs to the command that shows it again."""
    _, err = fpstated("sim", "--broken", "freed-first", "search", PLAN, "--runs", "1", status=1)
    assert f"  repeat: fpstated sim --broken freed-first run {PLAN} --seed 1\n" in err
    small = tmp_path / "small.json"
    words = ("explore", "small-growth", "--faults", "1", "-o", str(small))
    _, err = fpstated("sim", "--broken", "request-kept", *words, status=1)
    assert f"the simulator: fpstated sim --broken request-kept run {small}\n" in err
    fpstated("sim", "--broken", "request-kept", "run", str(small), status=1)
    fpstated("sim", "run", str(small))


def test_a_live_host_that_is_broken(tmp_path: Path) -> None:
    """What the simulator has found is found among processes, soon; the history says which host that was."""
    file, directory = tmp_path / "live.jsonl", tmp_path / "l"
    words = ("run", PLAN, "--history", str(file), "--directory", str(directory))
    _, err = fpstated("live", "--broken", "xfd-first", *words, status=1)
    assert err.startswith("violation: invariants at record ")
    assert "room_for_what_is_enabled: vms/a/vcpus/0 is " in err
    assert err.endswith(f"repeat: fpstated live --broken xfd-first run {PLAN} --seed 1\n")
    head = json.loads(file.read_text().splitlines()[0])
    assert (head["live"], head["broken"]) == (True, "xfd-first")
    assert "fault_lab.broken: xfd-first: XFD is committed" in (directory / "host.log").read_text()
    _, err = fpstated("sim", "diff", str(file), status=1)
    assert "vms/a/vcpus/0: step 18 differs\n" in err
