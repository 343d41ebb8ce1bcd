"""The host as a process that is killed, and on a disk that is full: acknowledged means there afterwards."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import grpc
import pytest
from fpstate.v1 import (
    event_pb2,
    host_pb2,
    host_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    vcpu_pb2,
    vcpu_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
)
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fpstated.host_command import run_host
from fpstated.host_config import HostRun
from host_agent.journal.inspection import verify
from host_agent.journal.journal import JournalOptions
from host_agent.log import read_log, replay
from host_agent.service.options import ServerOptions
from host_agent.state import HostConfig
from tests.host_process import HostProcess, lift_file_size, limit_file_size, mounted_tmpfs
from tests.journal.rig import FaultyDisk

TIMEOUT_S = 60
KILLS = 3


@dataclass
class Worker:
    """One client under load: makes VMs and reports events of a vCPU, call after call until the host is gone."""

    nr: int
    address: HostProcess
    acknowledged: set[str] = field(default_factory=set)
    #: The last request that was sent and not answered: it may have happened or not, but not half.
    open: str = ""
    seq: int = 0
    #: Calls that were answered since the host was started last.
    answered: int = 0
    error: BaseException | None = None

    def make(self) -> None:
        """A VM with a vCPU, and a session over it."""
        with self.address.channel() as channel:
            vm_pb2_grpc.VmServiceStub(channel).CreateVm(
                vm_pb2.CreateVmRequest(vm_id=f"w{self.nr}", vm=vm_pb2.Vm()), timeout=TIMEOUT_S
            )
            vcpu_pb2_grpc.VcpuServiceStub(channel).CreateVcpu(
                vcpu_pb2.CreateVcpuRequest(parent=f"vms/w{self.nr}"), timeout=TIMEOUT_S
            )

    def run(self, round_nr: int) -> None:
        """Work until the host does not answer."""
        try:
            with self.address.channel() as channel:
                self._work(channel, round_nr)
        except grpc.RpcError as error:
            if cast("grpc.Call", error).code() is not grpc.StatusCode.UNAVAILABLE:
                self.error = error
        except BaseException as error:  # noqa: BLE001 -- told by the test
            self.error = error

    def _work(self, channel: grpc.Channel, round_nr: int) -> None:
        vms, sessions = vm_pb2_grpc.VmServiceStub(channel), session_pb2_grpc.GuestSessionServiceStub(channel)
        vcpu = f"vms/w{self.nr}/vcpus/0"
        opened = sessions.OpenSession(session_pb2.OpenSessionRequest(client_name="w", vcpus=[vcpu]), timeout=TIMEOUT_S)
        assert opened.vcpus[0].next_seq in (self.seq + 1, self.seq + 2), "an event that was acknowledged is missing"
        self.seq = opened.vcpus[0].next_seq - 1
        for count in range(1_000_000):
            self.open = f"w{self.nr}-{round_nr}-{count}"
            vms.CreateVm(
                vm_pb2.CreateVmRequest(vm_id=self.open, vm=vm_pb2.Vm(), request_id=self.open), timeout=TIMEOUT_S
            )
            self.acknowledged.add(self.open)
            self.answered += 1
            event = event_pb2.GuestEvent(vcpu=vcpu, seq=self.seq + 1, hlt=event_pb2.Hlt())
            batch = event_pb2.EventBatch(events=event_pb2.GuestEvents(events=[event]))
            answer = sessions.SubmitEvents(
                session_pb2.SubmitEventsRequest(session=opened.session, epoch=opened.epoch, batch=batch),
                timeout=TIMEOUT_S,
            )
            assert answer.outcomes.outcomes[0].HasField("done")
            self.seq += 1

    def check(self, vms: set[str], channel: grpc.Channel) -> None:
        """What was acknowledged is there; what was under way can be asked for again, and is there once."""
        assert self.error is None, self.error
        assert self.acknowledged <= vms, f"lost: {sorted(self.acknowledged - vms)}"
        request = vm_pb2.CreateVmRequest(vm_id=self.open, vm=vm_pb2.Vm(), request_id=self.open)
        vm_pb2_grpc.VmServiceStub(channel).CreateVm(request, timeout=TIMEOUT_S)
        self.acknowledged.add(self.open)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until it is so."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"it never came: {what}"
        time.sleep(0.02)


def listed(channel: grpc.Channel) -> set[str]:
    """The ids of all VMs."""
    stub = vm_pb2_grpc.VmServiceStub(channel)
    found: set[str] = set()
    token = ""
    while True:
        page = stub.ListVms(vm_pb2.ListVmsRequest(page_size=1000, page_token=token), timeout=TIMEOUT_S)
        found |= {vm.name.removeprefix("vms/") for vm in page.vms}
        token = page.next_page_token
        if not token:
            return found


def under_load(workers: list[Worker], round_nr: int) -> list[threading.Thread]:
    """Start them, and wait until each has had answers of this host."""
    threads = [threading.Thread(target=worker.run, args=(round_nr,)) for worker in workers]
    for worker, thread in zip(workers, threads, strict=True):
        worker.answered = 0
        thread.start()
    wait_for(lambda: all(worker.answered > 1 or worker.error is not None for worker in workers), "load")
    return threads


@pytest.mark.timeout(400)
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """Killed under load, several times: no acknowledged VM or event is lost, and none that was not sent appears."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with HostProcess(tmp_path) as host:
        workers = [Worker(nr, host) for nr in range(3)]
        for worker in workers:
            worker.make()
        for round_nr in range(KILLS):
            threads = under_load(workers, round_nr)
            time.sleep(chance.random() * 0.5)  # the kill comes at any moment of a call
            host.kill()
            for thread in threads:
                thread.join(TIMEOUT_S * 2)
                assert not thread.is_alive()
            host.start()
            with host.channel() as channel:
                there = listed(channel)
                for worker in workers:
                    worker.check(there, channel)
            sent = set().union(*(worker.acknowledged for worker in workers)) | {f"w{nr}" for nr in range(3)}
            assert there <= sent, "nothing is there that nobody asked for"
        assert sum(len(worker.acknowledged) for worker in workers) > 3 * KILLS, "there was load"


def test_a_stop_in_peace_loses_nothing_either(tmp_path: Path) -> None:
    """SIGTERM: status 0, and the next start finds everything."""
    with HostProcess(tmp_path) as host:
        with host.channel() as channel:
            create(channel, "a")
        assert host.stop() == 0
        host.start()
        with host.channel() as channel:
            assert listed(channel) == {"a"}


def test_a_second_host_is_told_so(tmp_path: Path) -> None:
    """Status 1, and the process that has the directory."""
    with HostProcess(tmp_path) as host:
        again = subprocess.run(
            [
                sys.executable,
                "-m",
                "fpstated",
                "host",
                "--listen",
                f"unix:{tmp_path}/other.sock",
                "--state-dir",
                str(host.state_dir),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert again.returncode == 1
        assert f"in use by another host agent (process {host.pid})" in again.stderr


@pytest.fixture
def root_logger() -> Iterator[None]:
    """As it was, after a test that was a process's command."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("root_logger")
def test_a_host_whose_disk_fails_ends_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself, and says what failed and what is safe; the call under way hears STORAGE_FAILED."""
    disk = FaultyDisk()
    address = f"unix:{tmp_path}/host.sock"
    heard: list[str] = []

    def client() -> None:
        with grpc.insecure_channel(address) as channel:
            stub = host_pb2_grpc.HostServiceStub(channel)
            stub.GetHostInfo(host_pb2.GetHostInfoRequest(), timeout=TIMEOUT_S, wait_for_ready=True)
            disk.arm("sync")
            heard.append(_tried(channel, "a"))

    thread = threading.Thread(target=client)
    thread.start()
    options = JournalOptions(directory=tmp_path / "state", vfs=disk.name)
    run = HostRun(config=HostConfig(), options=ServerOptions(), listen=address, journal=options)
    status = run_host(run)
    thread.join(TIMEOUT_S)
    assert (status, heard, disk.fired) == (1, ["STORAGE_FAILED"], 1)
    assert "nothing after record 1 was acknowledged" in capsys.readouterr().err
    disk.unregister()


@pytest.mark.usefixtures("root_logger")
def test_a_record_of_a_host_whose_disk_was_full_replays(tmp_path: Path) -> None:
    """What was applied and has not happened is taken back in the log too: both lead to the same digest."""
    disk = FaultyDisk()
    address = f"unix:{tmp_path}/host.sock"

    def client() -> None:
        with grpc.insecure_channel(address) as channel:
            stub = host_pb2_grpc.HostServiceStub(channel)
            stub.GetHostInfo(host_pb2.GetHostInfoRequest(), timeout=TIMEOUT_S, wait_for_ready=True)
            create(channel, "a")
            disk.arm("write", full=True)
            heard.append(_tried(channel, "b"))
            deadline = time.monotonic() + TIMEOUT_S
            while _tried(channel, "c") == "STORAGE_FULL" and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)

    heard: list[str] = []
    thread = threading.Thread(target=client)
    thread.start()
    options = JournalOptions(directory=tmp_path / "state", vfs=disk.name, probe_interval_s=0.01)
    log = tmp_path / "run.log"
    run = HostRun(config=HostConfig(), options=ServerOptions(), listen=address, journal=options, record=log)
    assert run_host(run) == 0
    thread.join(TIMEOUT_S)
    assert (heard, disk.fired) == (["STORAGE_FULL"], 1)
    disk.unregister()
    with log.open() as lines:
        replayed = replay(*read_log(lines))
    assert set(replayed.state.vms) == {"vms/a", "vms/c"}
    assert replayed.digest() == verify(tmp_path / "state").digest


def test_a_record_of_half_a_history_is_refused(tmp_path: Path) -> None:
    """It could not be replayed; the journal can."""
    with HostProcess(tmp_path) as host:
        assert host.stop() == 0
    arguments = ["host", "--listen", host.address, "--state-dir", str(host.state_dir), "--record", f"{tmp_path}/log"]
    again = subprocess.run(
        [sys.executable, "-m", "fpstated", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 1
    assert "records already: see fpstated journal dump and replay" in again.stderr
    assert not (tmp_path / "log").exists()


@contextmanager
def _full_by_rlimit(tmp_path: Path) -> Iterator[tuple[HostProcess, Callable[[], object]]]:
    host = HostProcess(tmp_path)
    host.start(limit=limit_file_size(600_000))
    try:
        yield host, lambda: lift_file_size(host.pid)
    finally:
        host.kill()


@contextmanager
def _full_by_tmpfs(tmp_path: Path) -> Iterator[tuple[HostProcess, Callable[[], object]]]:
    folder = tmp_path / "small"
    reason = mounted_tmpfs(folder, "900k")
    if reason:
        pytest.skip(f"no file system can be mounted here: {reason}")
    try:
        host = HostProcess(tmp_path, state_dir=folder / "state")
        host.start()
        try:
            more = ["mount", "-o", "remount,size=50m", str(folder)]
            yield host, lambda: subprocess.run(more, check=True, capture_output=True)
        finally:
            host.kill()
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


Full = Callable[[Path], AbstractContextManager[tuple[HostProcess, Callable[[], object]]]]


@pytest.mark.parametrize("full", [_full_by_rlimit, _full_by_tmpfs], ids=["RLIMIT_FSIZE", "tmpfs"])
def test_a_disk_that_fills_up(tmp_path: Path, full: Full) -> None:
    """Work is refused, reads go on, what was acknowledged is there; with room the host goes on by itself."""
    with full(tmp_path) as (host, make_room):
        made: set[str] = set()
        with host.channel() as channel:
            refused = _fill(channel, made)
            assert refused == "STORAGE_FULL"
            assert listed(channel) == made
            assert _tried(channel, "more") == "STORAGE_FULL"
            make_room()
            wait_for(lambda: _tried(channel, "more") != "STORAGE_FULL", "room")
            made.add("more")
        host.kill()
        host.start()
        with host.channel() as channel:
            assert listed(channel) == made


def _fill(channel: grpc.Channel, made: set[str]) -> str:
    """Make VMs until that is refused; returns the reason."""
    for count in range(10_000):
        reason = _tried(channel, f"v{count}", labels={f"padding-{nr}": "x" * 60 for nr in range(60)})
        if reason:
            return reason
        made.add(f"v{count}")
    return "never"


def _tried(channel: grpc.Channel, vm_id: str, labels: dict[str, str] | None = None) -> str:
    """Make a VM; returns the reason of the refusal, or nothing."""
    refused: grpc.RpcError | None = None
    try:
        create(channel, vm_id, labels)
    except grpc.RpcError as error:
        refused = error
    if refused is None:
        return ""
    status = rpc_status.from_call(cast("grpc.Call", refused))
    assert status is not None, refused
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return str(info.reason)


def create(channel: grpc.Channel, vm_id: str, labels: dict[str, str] | None = None) -> None:
    """CreateVm, with a request id so that it can be asked for again."""
    vm = vm_pb2.Vm(labels=labels or {})
    request = vm_pb2.CreateVmRequest(vm_id=vm_id, vm=vm, request_id=vm_id)
    vm_pb2_grpc.VmServiceStub(channel).CreateVm(request, timeout=TIMEOUT_S)
