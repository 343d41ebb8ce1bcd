"""``fpstated sim check``: verdicts, statuses, and histories for other checkers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fault_lab.sim.record import record_lines
from fault_lab.sim.run import simulate
from tests.linear.mutants import stale_replica
from tests.linear.test_planted import OBSERVED
from tests.sim.test_command import sim


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    """A recorded run in which nothing is wrong."""
    file = tmp_path / "run.jsonl"
    file.write_text("".join(f"{line}\n" for line in record_lines(OBSERVED, simulate(OBSERVED, 1))))
    return str(file)


def test_a_history_is_checked_again(recorded: str) -> None:
    """A line a vCPU; with few steps nothing is known, which is status 2."""
    out, err = sim("check", recorded)
    assert err == ""
    names = [line.partition(": ok, ")[0] for line in out.splitlines()]
    assert names == ["vms/a/vcpus/0", "vms/a/vcpus/1", "vms/b/vcpus/0"]
    out, _ = sim("check", recorded, "--steps", "5", "--json", status=2)
    first = json.loads(out.splitlines()[0])
    assert (first["verdict"], first["why"]) == ("unknown", "no order was found in 5 steps, nor that there is none")


def test_a_violation_has_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of a run with a planted bug, checked where there is none."""
    stale_replica(monkeypatch)
    file = tmp_path / "run.jsonl"
    file.write_text("".join(f"{line}\n" for line in record_lines(OBSERVED, simulate(OBSERVED, 0))))
    out, _ = sim("check", str(file), status=1)
    assert ": violation, " in out
    assert "  possible before it: here, " in out


def test_words_that_are_wrong(tmp_path: Path) -> None:
    """A file without operations, one that is no JSON, one that is not there."""
    file = tmp_path / "none"
    file.write_text("{}\n")
    _, err = sim("check", str(file), status=2)
    assert err == f"fpstated sim check: {file}: expected operations on vCPUs, found none\n"
    file.write_text('{"op":\n')
    _, err = sim("check", str(file), status=2)
    assert err.startswith(f"fpstated sim check: {file}: line 1: not JSON: ")
    _, err = sim("check", str(tmp_path / "missing"), status=2)
    assert "No such file" in err


def test_for_other_checkers(recorded: str) -> None:
    """Jepsen's has one operation a process at a time, and none behind an info; Porcupine's has calls and returns."""
    out, _ = sim("check", recorded, "--export", "jepsen")
    under_way: set[str] = set()
    gone: set[str] = set()
    for line in out.splitlines():
        words = line.replace(",", " ").replace("}", " ").split()
        process, kind = words[words.index(":process") + 1], words[words.index(":type") + 1]
        assert process not in gone, line
        assert (process in under_way) == (kind != ":invoke"), line
        (under_way.add if kind == ":invoke" else under_way.remove)(process)
        if kind == ":info":
            gone.add(process)
    assert gone, "an answer was lost"
    out, _ = sim("check", recorded, "--export", "porcupine")
    operations = [each for vcpu in json.loads(out).values() for each in vcpu]
    assert all(each["Return"] is None or each["Call"] < each["Return"] for each in operations)
    assert {each["Input"]["operation"] for each in operations} >= {"Create", "Event", "Look", "LookAt"}
