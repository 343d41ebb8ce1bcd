"""Guests as clients of a host: the real one on /dev/kvm, its scripted twin, and either of them as a process."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fpstate.v1 import exit_pb2

from fpstated.client import Host, connect, create_guest, open_session
from fpstated.testing_host import HostUnderTest, host_on_a_thread
from guest_agent.kvm import GrowthOrder, GuestProgram, Outcome, install_kick_signal, kvm_available
from guest_agent.kvm_agent import KvmAgent, run_kvm_guest
from guest_agent.run import GuestKind, GuestOptions, run_guest
from guest_agent.timeline import GuestTimeline
from host_agent.state import HostConfig
from tests.test_guest_session import ENOMEM, REALLOC, decide, until

UNAVAILABLE = kvm_available()
needs_kvm = pytest.mark.skipif(UNAVAILABLE is not None, reason=f"no KVM guest can run here: {UNAVAILABLE}")
real_and_scripted = pytest.mark.parametrize(
    "kind",
    [pytest.param(GuestKind.KVM, id="real", marks=needs_kvm), pytest.param(GuestKind.SCRIPT, id="scripted")],
)

VCPU = "vms/a/vcpus/0"


@pytest.fixture
def server() -> Iterator[HostUnderTest]:
    """A host on a socket of its own, with faults, checking every invariant after every command."""
    with host_on_a_thread(HostConfig(faults=True, check_invariants=True)) as running:
        yield running


@pytest.fixture
def host(server: HostUnderTest) -> Iterator[Host]:
    """The client of that host."""
    with connect(server.address) as client:
        yield client


def play(
    server: HostUnderTest, kind: GuestKind, order: GrowthOrder, *, permission: bool = True
) -> tuple[int, list[str]]:
    """Run a guest in this process; return its status and the texts of its timeline."""
    out = io.StringIO()
    options = GuestOptions(
        host=server.address, vm="a", kind=kind, order=order, permission=permission, seed=7, timeline=True
    )
    status = run_guest(options, out)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert all((line["lane"], line["vcpu"]) == ("G", VCPU) for line in lines)
    assert [line["t"] for line in lines] == sorted(line["t"] for line in lines)
    return status, [line["text"] for line in lines]


# ---- the mail's runs -------------------------------------------------------------------------------------------------


@real_and_scripted
@pytest.mark.parametrize("order", GrowthOrder)
def test_a_guest_grows_and_finds_its_tiles_intact(
    server: HostUnderTest, host: Host, kind: GuestKind, order: GrowthOrder
) -> None:
    """Whichever write it is that makes the tiles usable, the container grows for it and the bytes come back."""
    status, texts = play(server, kind, order)
    assert (status, texts[-1]) == (0, "guest ended: VERIFIED")
    assert ("takes #NM  XFD_ERR=XTILE_DATA" in texts) == (order is GrowthOrder.XFD_ARMED_FIRST)
    assert host.get_vcpu(VCPU).fpstate.size_bytes == 10752


@real_and_scripted
@pytest.mark.parametrize("order", GrowthOrder)
def test_a_guest_survives_the_refusal(server: HostUnderTest, host: Host, kind: GuestKind, order: GrowthOrder) -> None:
    """Without permission the controller's answer is #GP: the guest says so and goes on without tiles."""
    server.controller()
    status, texts = play(server, kind, order, permission=False)
    assert (status, texts[-1]) == (0, "guest ended: REFUSED")
    assert {"waits for the decision", "takes #GP"} <= set(texts)
    assert host.get_vcpu(VCPU).fpstate.size_bytes == 2560


@real_and_scripted
def test_a_guest_never_notices_that_memory_was_short(server: HostUnderTest, host: Host, kind: GuestKind) -> None:
    """ENOMEM twice, RETRY_AFTER twice, and then the write that it began with."""
    faults = server.fail_allocation(nth=1, times=2)
    server.controller("retry-after:base=0.01,factor=1,tries=5,then=pause")
    status, texts = play(server, kind, GrowthOrder.XFD_ARMED_FIRST)
    assert (status, texts[-1]) == (0, "guest ended: VERIFIED")
    assert [fault.fired for fault in faults] == [1, 1]
    assert texts.count("takes #NM  XFD_ERR=XTILE_DATA") == 1
    assert host.get_vcpu(VCPU).fpstate.size_bytes == 10752


@real_and_scripted
def test_a_killed_guest_stops(server: HostUnderTest, kind: GuestKind) -> None:
    """KILL_VCPU is the end of the vCPU's thread, with the host's reason."""
    server.controller("kill-vcpu")
    server.fail_allocation()
    status, texts = play(server, kind, GrowthOrder.XCR0_FIRST_WITH_XFD_0)
    assert status == 3
    assert texts[-1].startswith("guest ended: STOPPED: STOP: ")


# ---- the real guest --------------------------------------------------------------------------------------------------


@needs_kvm
def test_the_real_guests_tiles_are_what_it_loaded(host: Host) -> None:
    """The bytes that it stored are those its generator makes, after rounds of loading and storing."""
    install_kick_signal()
    vcpu = create_guest(host, "a")
    program = GuestProgram(seed=2021, rounds=3)
    with open_session(host.channel, vcpus=[vcpu]) as session:
        report = run_kvm_guest(session, vcpu, program)
    assert (report.outcome, report.tiles) == (Outcome.VERIFIED, program.expected_tiles())


@needs_kvm
def test_a_parked_real_guest_says_so_and_can_be_stopped(host: Host) -> None:
    """While it waits in front of its instruction, what it waits for can be seen; stopping it leaves the exit open."""
    install_kick_signal()
    vcpu = create_guest(host, "a")
    host.arm_fault(REALLOC, errno=ENOMEM, fail_nth=1)
    with open_session(host.channel, vcpus=[vcpu]) as session, ThreadPoolExecutor() as pool:
        agent = KvmAgent(session, vcpu, GuestProgram())
        running = pool.submit(agent.run)
        until(lambda: agent.handler.waiting is not None)
        agent.stop()
        report = running.result()
        assert (report.outcome, report.reason) == (Outcome.STOPPED, "interrupted")
        assert (agent.handler.waits, agent.handler.waiting) == (1, None)
        assert agent.handler.waited_s > 0
        assert [each.vcpu for each in host.list_exits("vms/a", unresolved=True)] == [vcpu]


@needs_kvm
def test_a_guest_that_traps_no_more_is_stopped_by_a_directive(host: Host) -> None:
    """The host decides and only the VMM can act: KILL_VM reaches a sibling that spins in the guest."""
    install_kick_signal()
    names = [create_guest(host, "a", index=index) for index in (0, 1)]
    with open_session(host.channel, vcpus=names) as session, ThreadPoolExecutor() as pool:
        said: list[str] = []
        timeline = GuestTimeline(names[1], lambda line: said.append(line.text))
        spinning = KvmAgent(session, names[1], GuestProgram(spin=True), timeline)
        running = pool.submit(spinning.run)
        until(lambda: any("SPINNING" in text for text in said))
        host.arm_fault(REALLOC, errno=ENOMEM, fail_nth=1)
        dying = pool.submit(run_kvm_guest, session, names[0], GuestProgram())
        until(lambda: bool(host.list_exits("vms/a", unresolved=True)))
        decide(host, host.list_exits("vms/a", unresolved=True)[0].name, kill_vm=exit_pb2.KillVm())
        assert dying.result().outcome is Outcome.STOPPED
        assert running.result().reason.startswith("STOP: ")


# ---- a process -------------------------------------------------------------------------------------------------------

MAIN = """
import sys
from guest_agent.run import GuestKind, GuestOptions, run_guest
sys.exit(run_guest(GuestOptions(host=sys.argv[1], vm="a", kind=GuestKind(sys.argv[2]), timeline=True)))
"""


def start(server: HostUnderTest, kind: GuestKind) -> subprocess.Popen[str]:
    """Start a guest as a process of its own."""
    command = [sys.executable, "-c", MAIN, server.address, kind.value]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read the process's timeline up to a line with this text."""
    assert process.stdout is not None
    assert any(text in line for line in process.stdout)


@real_and_scripted
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_parked_guest(
    server: HostUnderTest, host: Host, kind: GuestKind, number: signal.Signals, status: int
) -> None:
    """Its session is closed and its exit stays; the next agent waits for that and runs its own guest."""
    host.arm_fault(REALLOC, errno=ENOMEM, fail_nth=1)
    with start(server, kind) as process:
        read_until(process, "waits for the decision")
        process.send_signal(number)
        assert process.wait() == status
    until(lambda: not server.machine.state.sessions)
    (parked,) = host.list_exits("vms/a", unresolved=True)
    with start(server, GuestKind.SCRIPT) as process:
        read_until(process, "of an earlier agent waits for its decision")
        decide(host, parked.name, retry=exit_pb2.Retry())
        read_until(process, "guest ended")
        assert process.wait() == 0


@real_and_scripted
def test_killing_an_agent_leaves_the_other_vcpus_running(server: HostUnderTest, host: Host, kind: GuestKind) -> None:
    """SIGKILL in the middle of a wait: another vCPU of the VM grows meanwhile; the dead agent's is taken over."""
    host.arm_fault(REALLOC, errno=ENOMEM, fail_nth=1)
    with start(server, kind) as process:
        read_until(process, "waits for the decision")
        os.kill(process.pid, signal.SIGKILL)
    other = create_guest(host, "a", index=1)
    with open_session(host.channel, vcpus=[other, VCPU]) as session:
        session.vcpu(other).xsetbv(0x602E7)
        assert host.get_vcpu(other).fpstate.size_bytes == 10752
        (parked,) = host.list_exits("vms/a", unresolved=True)
        decide(host, parked.name, retry=exit_pb2.Retry())
        session.vcpu(VCPU).wait_pending()
    assert host.get_vcpu(VCPU).fpstate.size_bytes == 10752


def test_what_can_not_be_run_is_said_on_standard_error(
    server: HostUnderTest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong script names file and line; a host that is not there, and one that refuses, are told apart by status."""
    wrong = tmp_path / "mine.txt"
    wrong.write_text("xsetbv\n")
    cases = [
        (GuestOptions(host=server.address, vm="a", script=wrong), 2, "mine.txt:1: expected `xsetbv INDEX VALUE"),
        (GuestOptions(host=server.address, vm="a", script=tmp_path / "none.txt"), 2, "No such file"),
        (GuestOptions(host="nowhere", vm="a", kind=GuestKind.SCRIPT), 2, "expected unix:PATH or HOST:PORT"),
        (GuestOptions(host=f"unix:{tmp_path}/h", vm="a", kind=GuestKind.SCRIPT, wait_s=0.1), 1, "no host answered"),
        (GuestOptions(host=server.address, vm="A!", kind=GuestKind.SCRIPT), 1, "FIELD_INVALID"),
    ]
    for options, status, text in cases:
        assert run_guest(options) == status
        error = capsys.readouterr().err
        assert error.startswith("fpstated guest: ")
        assert text in error


def test_a_step_that_the_host_refuses_is_named(
    server: HostUnderTest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal comes with the step's file and line."""
    script = tmp_path / "mine.txt"
    script.write_text("xsetbv 0 7\nwrite 2 4000 aabb\n")
    assert run_guest(GuestOptions(host=server.address, vm="a", script=script)) == 1
    error = capsys.readouterr().err
    assert "FIELD_INVALID" in error
    assert "mine.txt:2: write 2 4000 aabb" in error
