"""Two real hosts: a VM as a file and back, a move that is stopped or loses a host, and what a watcher sees of it."""

from __future__ import annotations

import hashlib
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fpstated.client import Done, Host, MigrateStep, MigrationCalls, RegisterWrite, open_session
from fpstated.ctl import migrate as command
from fpstated.ctl.image_file import read_chunks, read_header, write_image
from fpstated.ctl.names import migration_name
from tests.ctl.rig import WAIT_S, CtlHost, ctl_host, run_ctl
from tests.ctl.rig import Done as Said
from tests.ctl.test_watch import has, watching

XCR0_AMX = 0x602E7
SSE, XTILE_DATA = 1, 18
VCPU = "vms/a/vcpus/0"
STEPS = tuple(MigrateStep)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[CtlHost]:
    """A host with a VM whose registers hold something; it is outside the guest."""
    with ctl_host(tmp_path) as found:
        for line in ("vms create a", "vms permission a --request 18", "vcpus create a/0"):
            assert found.ctl(line).status == 0
        with open_session(found.address, vcpus=[VCPU]) as session:
            vcpu = session.vcpu(VCPU)
            assert isinstance(vcpu.xsetbv(XCR0_AMX), Done)
            vcpu.submit(RegisterWrite(XTILE_DATA, 0, os.urandom(8192)))
            vcpu.submit(RegisterWrite(SSE, 0, b"kept____" * 32))
            vcpu.hlt()
        yield found


def registers(address: str, vcpu: str) -> list[object]:
    """Everything that a guest could have left in them."""
    with Host(address) as calls:
        return [calls.get_xsave2(vcpu), calls.get_xcrs(vcpu), calls.get_msrs(vcpu, (0x1C4, 0x1C5, 0xDA0))]


def vms(address: str) -> list[str]:
    """The VMs of a host."""
    with Host(address) as calls:
        return [vm.name for vm in calls.list_vms()]


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_vm_as_a_file_and_back(host: CtlHost, tmp_path: Path) -> None:
    """On another host, and on its own under another name: every register is there. The file is not written over."""
    file = tmp_path / "a.fpstvm"
    assert host.ctl(f"export a {file}").out.startswith("vms/a: ")
    assert host.ctl(f"export a {file}").status == 2
    before = registers(host.address, VCPU)
    done = host.ctl(f"--address OTHER import {file}")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"vms/a: {read_header(file).size_bytes:,} B from {file}, uid vm-")
    assert host.ctl(f"import {file} --vm b --json").status == 0
    assert registers(host.other.address, VCPU) == before
    assert registers(host.address, "vms/b/vcpus/0") == before
    again = host.ctl(f"--address OTHER import {file}")
    assert (again.status, again.out) == (1, "")
    assert "VM_EXISTS" in again.err


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda raw: raw[:-1], "bytes, and its header says"),
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "SHA-256"),
        (lambda raw: raw[:10], "is no image"),
    ],
    ids=["cut off", "changed", "no header"],
)
def test_a_file_that_is_not_whole_makes_no_vm(
    host: CtlHost, tmp_path: Path, spoil: Callable[[bytes], bytes], said: str
) -> None:
    """The command sees it, the host keeps nothing, and the name is free."""
    file = tmp_path / "a.fpstvm"
    assert host.ctl(f"export a {file}").status == 0
    file.write_bytes(spoil(file.read_bytes()))
    done = host.ctl(f"--address OTHER import {file}")
    assert (done.status, done.out) == (1, "")
    assert said in done.err
    assert vms(host.other.address) == []


def test_an_image_that_only_the_host_can_judge(host: CtlHost, tmp_path: Path) -> None:
    """Its header fits its bytes, which are nonsense: the host says so, and makes no VM."""
    file, other = tmp_path / "a.fpstvm", tmp_path / "b.fpstvm"
    assert host.ctl(f"export a {file}").status == 0
    header = read_header(file)
    (chunk,) = read_chunks(file, header, lambda _done: None)
    chunk.data = chunk.data[:-8] + bytes(8)
    header.sha256 = hashlib.sha256(chunk.data).digest()
    write_image(other, header, [chunk], lambda _done: None)
    done = host.ctl(f"--address OTHER import {other}")
    assert (done.status, done.out) == (1, "")
    assert "SNAPSHOT_CORRUPT" in done.err or "FIELD_INVALID" in done.err
    assert vms(host.other.address) == []


def test_both_show_how_far_they_are(host: CtlHost, tmp_path: Path) -> None:
    """On a terminal; what came of it is on standard output alone."""
    file = tmp_path / "a.fpstvm"
    for words in (["export", "a", str(file)], ["import", str(file), "--vm", "b"]):
        shown, printed = _with_errors_on_a_terminal("ctl", "--address", host.address, *words)
        assert f"{words[0]} vms/" in shown
        assert printed.startswith("vms/")


def _with_errors_on_a_terminal(*words: str) -> tuple[str, str]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "fpstated", *words], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = bytearray()

    def read() -> None:
        try:
            while part := os.read(ours, 4096):
                shown.extend(part)
        except OSError:  # the last one who had the terminal has gone
            pass

    reader = threading.Thread(target=read)
    reader.start()
    printed, _ = process.communicate(timeout=WAIT_S)
    reader.join(WAIT_S)
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode(), printed.decode()


# -- moves -------------------------------------------------------------------------------------------------------------


def at_step(monkeypatch: pytest.MonkeyPatch, wanted: MigrateStep, act: Callable[[], None]) -> None:
    """Let something happen when a move is about to take a step, once."""
    begins = command.Steps.begins
    left = [act]

    def told(self: command.Steps, step: MigrateStep) -> None:
        begins(self, step)
        if step is wanted and left:
            left.pop()()

    monkeypatch.setattr(command.Steps, "begins", told)


def offered(done: Said, what: str) -> list[str]:
    """The words behind `fpstated ctl` of a command that was offered; none if it was not."""
    lines = [line.partition(f"{what}:")[2] for line in done.err.splitlines() if f"{what}:" in line]
    return shlex.split(lines[0])[2:] if lines else []


@pytest.mark.parametrize("step", STEPS[1:], ids=lambda step: step.name)
def test_a_move_that_is_stopped_goes_on(host: CtlHost, monkeypatch: pytest.MonkeyPatch, step: MigrateStep) -> None:
    """Ctrl-C before each step: where it stands is said, and the command that is offered finishes it."""
    at_step(monkeypatch, step, lambda: signal.raise_signal(signal.SIGINT))
    before = registers(host.address, VCPU)
    done = host.ctl("migrate a OTHER")
    assert done.status == 1
    assert done.out.splitlines() == [f"{each.value}: done" for each in STEPS[: STEPS.index(step)]]
    assert done.err.startswith("fpstated ctl: stopped\nfpstated ctl: ")
    begun, committed = step is not MigrateStep.BEGIN, step is MigrateStep.COMMIT_TARGET
    says = "nobody runs vms/a" if committed else "vms/a stands still" if begun else "vms/a goes on at its source"
    assert done.err.splitlines()[1].startswith(f"fpstated ctl: {says}")
    assert bool(offered(done, "to take back")) == (begun and not committed)
    again = run_ctl(*offered(done, "to go on"))
    assert (again.status, again.err) == (0, "")
    assert (vms(host.address), vms(host.other.address)) == ([], ["vms/a"])
    assert registers(host.other.address, VCPU) == before


@pytest.mark.parametrize("step", [MigrateStep.EXPORT, MigrateStep.STAGE, MigrateStep.COMMIT_SOURCE])
def test_a_move_that_is_stopped_is_taken_back(
    host: CtlHost, monkeypatch: pytest.MonkeyPatch, step: MigrateStep
) -> None:
    """By the other command that is offered; then nothing is open on either host, and the VM can be moved again."""
    at_step(monkeypatch, step, lambda: signal.raise_signal(signal.SIGINT))
    back = run_ctl(*offered(host.ctl("migrate a OTHER"), "to take back"), "--reason", "not today")
    assert (back.status, back.err) == (0, "")
    assert back.out.endswith(": ABORTED here\n")
    name = back.out.partition(":")[0]
    (listed,) = host.ctl("migrations list a").out.splitlines()[1:]
    assert has(name, "SOURCE", "ABORTED", "not today")(listed)
    assert has("state", "ABORTED")(host.ctl(f"migrations get {name}").out)
    there = host.ctl("--address OTHER migrations list").out.splitlines()[1:]
    assert all("ABORTED" in line for line in there)
    assert (vms(host.address), vms(host.other.address)) == (["vms/a"], [])
    assert host.ctl("migrate a OTHER").status == 0


def test_a_target_that_dies_in_the_middle(host: CtlHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 3; the move is taken back at the source, which is said; once the target is there again it goes through."""
    at_step(monkeypatch, MigrateStep.STAGE, host.other.kill)
    done = host.ctl("migrate a OTHER --patience 0")
    assert done.status == 3
    assert "a host has gone away" in done.err
    assert "vms/a goes on at its source" in done.err
    host.other.start()
    assert run_ctl(*offered(done, "to go on")).status == 0
    assert (vms(host.address), vms(host.other.address)) == ([], ["vms/a"])


def test_a_target_that_hangs(host: CtlHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the call that is under way; what the target has is said to be unknown, and the move goes on later."""

    def hang() -> None:
        os.kill(host.other.pid, signal.SIGSTOP)
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    at_step(monkeypatch, MigrateStep.STAGE, hang)
    done = host.ctl("migrate a OTHER")
    assert done.status == 1
    assert has("vms/a stands still at its source", "at the target not known, as it does not answer")(done.err)
    os.kill(host.other.pid, signal.SIGCONT)
    assert run_ctl(*offered(done, "to go on")).status == 0
    assert (vms(host.address), vms(host.other.address)) == ([], ["vms/a"])


def test_what_is_left_of_a_host_that_is_lost(host: CtlHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the target has staged it forgets without the source's word only where that is said with --force."""
    at_step(monkeypatch, MigrateStep.COMMIT_SOURCE, lambda: signal.raise_signal(signal.SIGINT))
    host.ctl("migrate a OTHER")
    host.process.kill()
    assert "STAGED" in host.ctl("--address OTHER migrations list").out
    done = host.ctl("--address OTHER migrations abort a --force --json")
    assert (done.status, done.err) == (0, "")
    assert '"state": "MIGRATION_STATE_ABORTED"' in done.out
    assert host.ctl("--address OTHER migrations abort a --force").status == 1


def test_where_the_target_is_not(host: CtlHost, tmp_path: Path) -> None:
    """Status 3 with the target's address, before anything is begun."""
    done = host.ctl(f"migrate a unix:{tmp_path}/none.sock")
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith(f"fpstated ctl: no host answers at unix:{tmp_path}/none.sock (")
    assert "vms/a/" not in host.ctl("migrations list").out


def test_migrations_are_watched(host: CtlHost) -> None:
    """What was there is CREATED; then each state that one comes to, on the source and on the target."""
    with Host(host.address) as calls:
        steps = MigrationCalls(calls)
        steps.abort(steps.begin("vms/a", "unix:/elsewhere").migration, reason="no")
    kinds = ("--kind", "host", "--kind", "migration")
    with watching(host, *kinds) as here, watching(host.other, *kinds) as there:
        there.until(has("CREATED", "host"))
        assert has("CREATED", "ABORTED, to unix:/elsewhere, epoch 1, no")(here.until(has("vms/a/migrations/"))[-1])
        assert host.ctl("migrate a OTHER").status == 0
        way = f"to {host.other.address}, epoch 1"
        assert changes(here.until(has("COMMITTED"))) == [f"CREATED BEGUN, {way}", f"UPDATED COMMITTED, {way}"]
        way = "from golden, epoch 1"
        assert changes(there.until(has("COMMITTED"))) == [
            f"CREATED IMPORTED, {way}",
            f"UPDATED STAGED, {way}",
            f"UPDATED COMMITTED, {way}",
        ]


def changes(lines: list[str]) -> list[str]:
    """Kind and detail of each line of a watch."""
    return [f"{words[1]} {words[3]}" for words in (line.split(maxsplit=3) for line in lines)]


def test_names_of_migrations() -> None:
    """Short or full."""
    assert migration_name("a/m-1") == migration_name("vms/a/migrations/m-1") == "vms/a/migrations/m-1"
