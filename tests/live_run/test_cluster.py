"""The processes of a plan by themselves: ready, killed, back where they were; real guests; budgets."""

from __future__ import annotations

from pathlib import Path

import pytest

from fault_lab.live.cluster import LiveCluster, NotReadyError
from fault_lab.live.judge import read
from fault_lab.live.run import run_live
from fault_lab.plan.load import load_plan
from guest_agent.kvm import kvm_available

FIRST = (Path(__file__).parent.parent / "sim" / "first.yaml").read_text()


def test_a_host_on_tcp_comes_back_where_it_was(tmp_path: Path) -> None:
    """Port 0 is a free one, read from what the host says; after SIGKILL it listens there again."""
    with LiveCluster(load_plan(FIRST), tmp_path, tcp=True) as cluster:
        cluster.start_hosts()
        address = cluster.addresses["host"]
        assert address.startswith("127.0.0.1:")
        cluster["host"].kill()
        assert (cluster["host"].running, cluster["host"].status) == (False, -9)
        cluster.launch("host")
        cluster.wait_ready("host")
        assert cluster.addresses["host"] == address
        cluster["host"].pause()
        assert not cluster.is_ready("host")
        cluster["host"].resume()
        cluster.wait_ready("host")
    assert not cluster["host"].running


def test_a_host_that_cannot_start(tmp_path: Path) -> None:
    """What it said itself is in the error, and nothing is left running."""
    (tmp_path / "host-state").write_text("in the way")
    cluster = LiveCluster(load_plan(FIRST), tmp_path)
    with cluster, pytest.raises(NotReadyError, match=r"host ended with status 1:\n.*host-state"):
        cluster.start_hosts()
    assert not any(process.running for process in cluster.nodes.values())


def test_a_real_guest(tmp_path: Path) -> None:
    """A VM labelled `guest: kvm` runs real code: it meets the same failure, and verifies its tiles."""
    reason = kvm_available()
    if reason:
        pytest.skip(reason)
    text = FIRST.replace("vms: [{name: a}]", "vms: [{name: a, labels: {guest: kvm}}]")
    assert "guest: kvm" in text
    result = run_live(load_plan(text), tmp_path)
    assert result.violation is None, result.violation
    records = [read(line) for line in result.lines]
    assert [each["state"] for each in records if each["type"] == "guest"] == ["verified"]
    assert [each["fault"] for each in records if each["type"] == "fault"] == ["no-memory"]


def test_a_budget_of_faults(tmp_path: Path) -> None:
    """When it is used up the faults are disarmed, and the run goes on to its end."""
    text = FIRST.replace("fail-nth: 1", "probability: 100").replace("policies: [retry]", "policies: ['retry:tries=9']")
    plan = load_plan(text + "budget: {faults: 2}\n")
    result = run_live(plan, tmp_path)
    assert result.violation is None, result.violation
    # What fires before a host has heard that it is over is on top. Without the end each vCPU would fail ten times.
    assert 2 <= len(result.fired) < 10
    assert result.seen >= {"fired:no-memory", "decided-retry"}
