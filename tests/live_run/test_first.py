"""The founding mail's failure on real processes: what is said of it, and that the simulator says the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fpstate.fault.v1 import plan_pb2
from typer.testing import CliRunner

from fault_lab.live.judge import read
from fault_lab.live.run import LiveResult, run_live
from fault_lab.plan.canonical import plan_hash
from fault_lab.plan.load import load_plan
from fault_lab.plans import find_plan
from fault_lab.sim.diff import first_differences, sequences
from fault_lab.sim.record import read_record, record_lines
from fault_lab.sim.run import simulate
from fpstated.cli import app

FIRST = Path(__file__).parent.parent / "sim" / "first.yaml"
#: Two vCPUs whose draws are each their own, so that their order does not matter.
DRAWN = """
api-version: fpstate.fault.v1
name: drawn
seed: 2
topology:
  hosts: [{name: host}]
  vms: [{name: a, vcpus: 2}, {name: b, allocation-policy: on_write}]
  controllers: [{name: ctl, policies: ["retry:tries=2,then=inject-gp"]}]
workload:
  guests:
    - {vcpu: "vms/a/*", mix: xcr0-first, rounds: 3}
    - {random: {events: 60}}
faults:
  - {name: short, point: fpstate.realloc.alloc, attributes: {probability: 60}}
checks: {sometimes: ["fired:short"]}
"""


def fpstated(*words: str, status: int = 0) -> tuple[str, str]:
    """Run the command in this process; return its output and its errors."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == status, done.output
    return done.stdout, done.stderr


def test_run_and_diff(tmp_path: Path) -> None:
    """The figures last, a certificate for machines, and a history that does what the simulated one does."""
    file = tmp_path / "live.jsonl"
    out, err = fpstated("live", "run", str(FIRST), "--json", "--history", str(file))
    certificate = json.loads(out)
    assert err == f"live: 1 run, {certificate['steps']} records, 0 violations, 1 faults fired\n"
    assert certificate["live"] is True
    assert certificate["verdict"] == "ok"
    recorded = read_record(file.read_text())
    assert (recorded.live, len(recorded.lines)) == (True, certificate["steps"])
    sizes = [each["bytes"] for each in map(read, recorded.lines) if each["type"] == "vcpu"]
    assert list(dict.fromkeys(sizes)) == [2560, 10752]
    found = sequences(recorded.lines)
    assert found == {
        "vms/a/vcpus/0": [
            "1 Xsetbv value=0x602e7",
            "pending on vms/a/vcpus/0/exits/1",
            "exit generation 1 open NO_MEMORY",
            "exit generation 1 resolved NO_MEMORY RETRY by ctl",
            "done, grown from 2560 to 10752 bytes",
            "2 Hlt",
            "done",
            "guest round 1: halted",
        ],
        "fault no-memory at vms/a/vcpus/0": ["fpstate.realloc.alloc, hit 1: FailErrno(errno=12)"],
    }
    assert fpstated("sim", "diff", str(file)) == ("diff: 2 compared, 2 the same, 0 differ\n", "")
    simulated = tmp_path / "sim.jsonl"
    fpstated("sim", "run", str(FIRST), "--history", str(simulated))
    assert fpstated("sim", "diff", str(file), str(simulated))[0] == "diff: 2 compared, 2 the same, 0 differ\n"
    _, err = fpstated("sim", "replay", str(file), status=2)
    assert "expected a simulated run, got a live one" in err
    _, err = fpstated("sim", "diff", str(simulated), status=2)
    assert "expected the history of a live run" in err


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(find_plan("growth-fails-once").read_text(), id="growth-fails-once"),
        pytest.param(DRAWN, id="draws of each vCPU's own"),
    ],
)
def test_live_and_simulated_do_the_same(text: str, tmp_path: Path) -> None:
    """Per vCPU every event, outcome, exit and decision, and of each fault every hit that fired."""
    plan = load_plan(text)
    live = run_live(plan, tmp_path)
    assert live.violation is None, live.violation
    assert set(plan.checks.sometimes) <= live.seen
    simulated = simulate(plan)
    assert [each.text() for each in first_differences(live.lines, simulated.lines)] == []


def test_a_difference_is_shown(tmp_path: Path) -> None:
    """A live controller that decides otherwise: where the vCPU first goes another way, and what came before."""
    plan = load_plan(FIRST.read_text())
    other = load_plan(FIRST.read_text().replace("policies: [retry]", "policies: [inject-gp]"))
    result = run_live(other, tmp_path / "run")
    file = tmp_path / "live.jsonl"
    file.write_text(as_of(plan, result))
    out, err = fpstated("sim", "diff", str(file), status=1)
    assert out == "diff: 2 compared, 1 the same, 1 differ\n"
    assert (
        err
        == """\
vms/a/vcpus/0: step 4 differs
    1 Xsetbv value=0x602e7
    pending on vms/a/vcpus/0/exits/1
    exit generation 1 open NO_MEMORY
  live       exit generation 1 resolved NO_MEMORY INJECT_GP by ctl
  simulated  exit generation 1 resolved NO_MEMORY RETRY by ctl
"""
    )


def as_of(plan: plan_pb2.Plan, result: LiveResult) -> str:
    """The file of a run, as if it were of another plan."""
    lines = list(record_lines(plan, result, live=True))
    head = json.loads(lines[0]) | {"plan_sha256": plan_hash(plan)}
    return "\n".join([json.dumps(head), *lines[1:]]) + "\n"


def children(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    mine = [int(each) for path in Path(f"/proc/{pid}/task").glob("*/children") for each in path.read_text().split()]
    return mine + [each for child in mine for each in children(child)]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for it, for a minute at most."""
    until_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until_s, what
        time.sleep(0.02)


def test_nothing_outlives_a_runner_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the runner takes every host, guest and controller with it."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(FIRST.read_text().split("faults:")[0].replace("[retry]", "[silent]") + "phases: {chaos: 60s}\n")
    command = [sys.executable, "-m", "fpstated", "live", "run", str(plan), "--directory", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as runner:
        wait_until(lambda: len(children(runner.pid)) >= 3, "three processes")
        started = children(runner.pid)
        runner.kill()
        runner.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in started), f"the end of {started}")


def is_alive(pid: int) -> bool:
    """Whether a process is there, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C: one line, status 130, and every process it started is stopped."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(FIRST.read_text().split("faults:")[0] + "phases: {chaos: 60s}\n")
    command = [sys.executable, "-m", "fpstated", "live", "run", str(plan)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as runner:
        wait_until(lambda: len(children(runner.pid)) >= 3, "three processes")
        started = children(runner.pid)
        os.kill(runner.pid, signal.SIGINT)
        _, err = runner.communicate(timeout=60)
    assert err == "fpstated live run: interrupted; every process it started is stopped\n"
    assert runner.returncode == 130
    wait_until(lambda: not any(is_alive(pid) for pid in started), f"the end of {started}")
