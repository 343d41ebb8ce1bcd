"""Faults on somebody's own host: armed under a lease, gone when their owner is, halted by anybody."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from fpstated.cli import app
from guest_agent.host import Host
from tests.host_process import HostProcess

PLAN = """
api-version: fpstate.fault.v1
name: mine
topology: {hosts: [{name: host}], vms: [{name: a}]}
faults:
  - {name: no-memory, point: fpstate.realloc.alloc}
  - {name: slow, point: rpc.server.reply, attributes: {probability: 0}, action: {delay: 1ms}}
  - {name: cut, point: link.message, action: drop}
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host of somebody's, with faults allowed and metrics."""
    with HostProcess(tmp_path_factory.mktemp("host"), "--faults") as process:
        yield process


@pytest.fixture
def plan(tmp_path: Path) -> str:
    """The plan as a file."""
    path = tmp_path / "mine.yaml"
    path.write_text(PLAN)
    return str(path)


def faults(*words: str, status: int = 0) -> tuple[str, str]:
    """Run a command of `fpstated faults`; return its output and its errors."""
    done = CliRunner().invoke(app, ["faults", *words])
    assert done.exit_code == status, done.output
    return done.stdout, done.stderr


def armed(host: HostProcess) -> list[str]:
    """The points where something is armed."""
    with Host(host.channel()) as calls:
        return [fault.point for fault in calls.list_faults()]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for it, for half a minute at most."""
    until_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until_s, what
        time.sleep(0.02)


def test_arm_for_good_and_disarm(host: HostProcess, plan: str) -> None:
    """What is a host's is armed and named; what is the runner's is said. Disarming is by the plan."""
    out, err = faults("arm", plan, "--host", host.address, "--lease", "0")
    names = [line.partition(": faults/")[0] for line in out.splitlines()]
    assert names == ["no-memory", "slow"]
    assert err == "not armed: cut: of another phase, or of a point that `fpstated live run` has\n"
    assert armed(host) == ["fpstate.realloc.alloc", "rpc.server.reply"]
    assert faults("disarm", plan, "--host", host.address) == ("2 faults disarmed\n", "")
    assert armed(host) == []


def test_a_tester_that_dies_leaves_nothing_armed(host: HostProcess, plan: str) -> None:
    """`faults arm` renews its leases while it lives, so they outlast their time; SIGKILL ends that."""
    command = [sys.executable, "-m", "fpstated", "faults", "arm", plan, "--host", host.address, "--lease", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as tester:
        assert tester.stdout is not None
        first = tester.stdout.readline()
        assert first.startswith("no-memory: faults/")
        wait_until(lambda: len(armed(host)) == 2, "both are armed")
        since_s = time.monotonic()
        while time.monotonic() < since_s + 1.5:  # longer than the lease
            assert len(armed(host)) == 2
            time.sleep(0.1)
        tester.kill()
    wait_until(lambda: not armed(host), "the leases have ended")


def test_halt(host: HostProcess, plan: str) -> None:
    """Everything, whoever armed it, and on every host that is named; one that is not there is said."""
    with Host(host.channel()) as calls:
        calls.arm_fault("fpstate.realloc.alloc", errno=12, owner="somebody-else")
    faults("arm", plan, "--host", host.address, "--lease", "0")
    nowhere = "unix:/nonexistent/host.sock"
    done = CliRunner().invoke(app, ["live", "halt", "--host", host.address, "--host", nowhere])
    assert done.exit_code == 2
    assert done.stdout == f"{host.address}: 3 faults disarmed\n"
    assert f"fpstated live halt: {nowhere}: UNAVAILABLE" in done.stderr
    assert armed(host) == []
    assert faults("halt", "--host", host.address) == ("0 faults disarmed\n", "")


def test_a_host_that_takes_none(tmp_path: Path, plan: str) -> None:
    """Words that are wrong, and a host that was not started with --faults: status 2, and what was expected."""
    _, err = faults("arm", plan, "--lease", "0.01", status=2)
    assert "--lease: expected 0, or 0.1 to 86,400 seconds, got 0.01" in err
    _, err = faults("arm", plan, "--phase", "later", status=2)
    assert "--phase: expected one of warm, chaos, heal, settle, got 'later'" in err
    with HostProcess(tmp_path) as host:
        _, err = faults("arm", plan, "--host", host.address, status=2)
    assert "FAULTS_NOT_ENABLED" in err
    assert grpc.StatusCode.FAILED_PRECONDITION.name in err or "not started with fault injection" in err


def test_no_address() -> None:
    """What can be no address is status 2, as one where nobody is."""
    for words in (["live", "halt"], ["faults", "halt"]):
        done = CliRunner().invoke(app, [*words, "--host", "bogus"])
        assert (done.exit_code, "expected unix:PATH or HOST:PORT, got 'bogus'" in done.stderr) == (2, True), done.stderr


def test_a_run_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM is an interrupt: its processes are stopped, and its folder is gone."""
    running = subprocess.Popen(
        [sys.executable, "-m", "fpstated", "live", "run", "memory-is-short"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(tmp_path.glob("fpstated-live-*/vms-*.log")):
        time.sleep(0.01)
    running.terminate()
    said = running.communicate(timeout=60)[1]
    assert (running.returncode, said) == (130, "fpstated live run: interrupted; every process it started is stopped\n")
    assert not any(tmp_path.iterdir())
