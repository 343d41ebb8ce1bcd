"""The main job on real processes: a host, a controller and guests, each killed where it hurts.

Every process is the installed command. The guests are real code under /dev/kvm where it is usable, and the scripted
twins of the same program where it is not; what is shown holds for both.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import grpc
import pytest
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc
from fpstate.v1 import vcpu_pb2, vcpu_pb2_grpc

from guest_agent.kvm import kvm_available

WAIT_S = 60.0
NO_KVM = kvm_available()

KINDS = [
    pytest.param("kvm", marks=pytest.mark.skipif(bool(NO_KVM), reason=f"no real guest: {NO_KVM}")),
    pytest.param("script"),
]


class Process:
    """A ``fpstated`` command whose standard output is read line by line."""

    def __init__(self, *arguments: str) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "fpstated", *arguments], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.lines: list[str] = []
        self._fresh: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
        self._reader.join(WAIT_S)
        assert self._popen.stdout is not None
        self._popen.stdout.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self.lines.append(line)
            self._fresh.put(line)

    def said(self, words: str) -> str:
        """Wait for a line that has ``words``; lines before it are passed over."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                line = self._fresh.get(timeout=0.1)
            except queue.Empty:
                assert self._popen.poll() is None or not self._fresh.empty(), f"ended before it said {words!r}"
                continue
            if words in line:
                return line
        raise AssertionError(f"nobody said {words!r}; the last lines: {self.lines[-5:]}")

    def kill(self) -> None:
        """Kill -9."""
        self._popen.kill()
        self._popen.wait(WAIT_S)

    def status(self) -> int:
        """Wait for the end and return the exit status."""
        return self._popen.wait(WAIT_S)


class Cluster:
    """A host on a socket, and whatever is started against it."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self.address = f"unix:{folder / 'host.sock'}"
        # Nobody's lease and no exit's deadline is to end because a machine is slow.
        flags = ("--faults", "--check-invariants", "--timeline", "--grace", "0", "--exit-deadline", "600")
        self.host = self.start("host", "--listen", self.address, *flags)
        self.host.said('"ready"')
        self.channel = self._stack.enter_context(grpc.insecure_channel(self.address))

    def start(self, *arguments: str) -> Process:
        """Start any command; it is stopped with the cluster."""
        return self._stack.enter_context(Process(*arguments))

    def controller(self, *arguments: str) -> Process:
        """Start a controller and wait until it watches."""
        controller = self.start("controller", "--timeline", "--host", self.address, "--lease", "600", *arguments)
        controller.said('"watching"')
        return controller

    def guest(self, vm: str, kind: str, *arguments: str) -> Process:
        """Start a guest agent with a VM of its own."""
        return self.start("guest", "--host", self.address, "--vm", vm, "--kind", kind, "--timeline", *arguments)

    def fail_growth(self, vm: str, times: int) -> None:
        """Let the next so many growths of a VM's containers fail with ENOMEM."""
        fault = fault_pb2.Fault(
            point="fpstate.realloc.alloc",
            scope=fault_pb2.FaultScope(vm=f"vms/{vm}"),
            attributes=fault_pb2.FaultAttributes(times=times),
            action=fault_pb2.FaultAction(errno_action=fault_pb2.ErrnoAction(errno_value=12)),
        )
        fault_pb2_grpc.FaultServiceStub(self.channel).ArmFault(fault_pb2.ArmFaultRequest(fault=fault), timeout=60)

    def vcpu(self, vm: str) -> vcpu_pb2.Vcpu:
        """Ask the host about vCPU 0 of a VM."""
        request = vcpu_pb2.GetVcpuRequest(name=f"vms/{vm}/vcpus/0")
        return vcpu_pb2_grpc.VcpuServiceStub(self.channel).GetVcpu(request, timeout=60).vcpu

    def close(self) -> None:
        """Stop everything, newest first."""
        self._stack.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A running host."""
    running = Cluster(tmp_path)
    yield running
    running.close()


def _eventually(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["xfd-armed-first", "xcr0-first-with-xfd-0"])
def test_a_guest_grows_and_reads_its_tiles_back(cluster: Cluster, kind: str, order: str) -> None:
    """Either write may be the one that needs the larger container: XFD in the #NM handler, or XCR0 with XFD clear."""
    assert cluster.guest("a", kind, "--order", order).status() == 0
    assert cluster.vcpu("a").fpstate.size_bytes == 10_752


@pytest.mark.parametrize("kind", KINDS)
def test_enomem_twice_then_growth(cluster: Cluster, kind: str) -> None:
    """The allocation fails twice; each time the controller says RETRY_AFTER; the guest sees one slow instruction."""
    cluster.fail_growth("b", times=2)
    controller = cluster.controller("--policy", "retry-after:base=0.05,factor=2,tries=5,then=pause")
    guest = cluster.guest("b", kind)
    assert guest.status() == 0
    decided = [event for event in map(json.loads, controller.lines) if event["event"] == "decision"]
    assert [(event["decision"], event["attempt"]) for event in decided] == [("RETRY_AFTER", 1), ("RETRY_AFTER", 2)]
    assert sum("-> NULL" in line for line in cluster.host.lines) == 2, "the faults happened"
    assert cluster.vcpu("b").fpstate.size_bytes == 10_752


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_reaches_the_guest_as_gp(cluster: Cluster, kind: str) -> None:
    """Without permission the default decision is #GP; the guest's handler survives it and goes on without tiles."""
    cluster.controller()
    guest = cluster.guest("c", kind, "--no-permission")
    assert guest.status() == 0
    assert any("REFUSED" in line for line in guest.lines)
    assert cluster.vcpu("c").fpstate.size_bytes == 2_560


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_controller_leaves_one_vcpu_parked_and_nobody_else(cluster: Cluster, kind: str) -> None:
    """Kill -9 between the exit and its answer: the vCPU waits, others run, and a new controller settles it."""
    cluster.fail_growth("b", times=1)
    controller = cluster.controller("--policy", "silent")
    parked = cluster.guest("b", kind)
    cluster.host.said("KVM_RUN returns")
    controller.kill()
    assert cluster.guest("a", kind).status() == 0, "another vCPU grows meanwhile"
    assert cluster.vcpu("b").state == vcpu_pb2.VCPU_STATE_PARKED
    cluster.controller("--policy", "retry")  # the same name takes over what its predecessor held
    assert parked.status() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_guest_agent_takes_nobody_with_it(cluster: Cluster, kind: str) -> None:
    """Kill -9 of an agent whose vCPU is parked: the vCPU keeps its exit, others run."""
    cluster.fail_growth("b", times=1)
    doomed = cluster.guest("b", kind)
    cluster.host.said("KVM_RUN returns")
    doomed.kill()
    assert cluster.guest("a", kind).status() == 0
    vcpu = cluster.vcpu("b")
    assert (vcpu.state, bool(vcpu.exit)) == (vcpu_pb2.VCPU_STATE_PARKED, True)
    cluster.controller("--policy", "retry")
    _eventually(lambda: cluster.vcpu("b").fpstate.size_bytes == 10_752)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_vcpu_stops_its_guest(cluster: Cluster, kind: str) -> None:
    """KILL_VCPU: the host decides, and the agent stops the guest in order."""
    cluster.fail_growth("b", times=1)
    cluster.controller("--policy", "kill-vcpu")
    guest = cluster.guest("b", kind)
    guest.status()
    assert any("STOPPED" in line for line in guest.lines)
    assert cluster.vcpu("b").state == vcpu_pb2.VCPU_STATE_KILLED


@pytest.mark.parametrize("kind", KINDS)
def test_the_demonstration(kind: str, tmp_path: Path) -> None:
    """`make run`: one timeline with three lanes, one summary, status 0, no process left; its log replays."""
    log = tmp_path / "run.log"
    command = [sys.executable, "-m", "fpstated", "demo", "--guests", kind, "--record", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lanes = set(re.findall(r"^ *[0-9.]+ ms  ([HGU])  ", done.stdout, flags=re.MULTILINE))
    assert lanes == {"H", "G", "U"}
    guests = "3 real KVM guests" if kind == "kvm" else "3 scripted guests"
    assert done.stdout.splitlines()[-1] == (
        f"demo: {guests}: a grew 2,560 -> 10,752 B; b grew at attempt 3, after 2 x ENOMEM and 2 decisions; "
        "c got #GP (EPERM) and went on without tiles; every invariant held after every command"
    )
    if kind == "kvm":
        readme = (Path(__file__).parent.parent / "README.md").read_text()
        assert done.stdout.splitlines()[-1] in readme, "the README shows what the command prints"
    first, again = (_replay(log) for _ in range(2))
    assert first == again


def _replay(log: Path) -> str:
    command = [sys.executable, "-m", "fpstated", "replay", str(log)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout


@pytest.fixture
def _sigint() -> Iterator[None]:
    """Processes started from here hear SIGINT, also where these tests run in a background that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_sigint")
def test_ctrl_c_stops_every_process(tmp_path: Path) -> None:
    """An interrupted demonstration says so, has status 130, and leaves nothing behind."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "fpstated", "demo", "--guests", "script"]
    demo = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert demo.stdout is not None
    while "KVM_CREATE_VCPU" not in demo.stdout.readline():
        assert demo.poll() is None
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate(timeout=WAIT_S)
    assert (demo.returncode, "interrupted" in errors) == (130, True)
    assert not list(tmp_path.glob("fpstated-demo-*")), "its folder is gone"
    assert not _processes_of_session(demo.pid), "no process is left"


def _processes_of_session(session: int) -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            found.append(stat.parent.name)
    return found
