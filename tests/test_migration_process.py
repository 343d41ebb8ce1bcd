"""Source, target and driver as processes, each killed (SIGKILL) before every step of a migration, one by one.

After each kill the one that died comes back, a driver is started anew with the same arguments, and then: exactly one
host owns the VM, it is the target, every register is there byte for byte, and the guest, one of whose vCPUs was parked
all the while, goes on where it was in the session that it had.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import grpc
import pytest
from fpstate.v1 import exit_pb2, exit_pb2_grpc, migration_pb2

from fpstated.client import (
    Done,
    Host,
    HostError,
    InstructionOutcome,
    MigrateStep,
    MigrationCalls,
    RegisterRead,
    RegisterWrite,
    VcpuPort,
    abort_migration,
    open_session,
)
from tests.host_process import HostProcess

WAIT_S = 120.0
XCR0_AMX = 0x602E7
SSE, XTILE_DATA = 1, 18
STEPS = tuple(MigrateStep)


class Pair:
    """Two hosts with state directories of their own."""

    def __init__(self, folder: Path) -> None:
        self.hosts: dict[str, HostProcess] = {}
        for name in ("source", "target"):
            (folder / name).mkdir()
            arguments = ("--name", name, "--faults", "--check-invariants", "--exit-deadline", "3600")
            self.hosts[name] = HostProcess(folder / name, *arguments)
        self.count = 0

    def __enter__(self) -> Self:
        for host in self.hosts.values():
            host.start()
        return self

    def __exit__(self, *_error: object) -> None:
        for host in self.hosts.values():
            host.kill()

    @property
    def addresses(self) -> tuple[str, str]:
        """Of source and target."""
        return self.hosts["source"].address, self.hosts["target"].address

    def kill(self, name: str) -> None:
        """SIGKILL, which the process dies of, and a start on the same directory."""
        host = self.hosts[name]
        before = host.pid
        host.kill()
        assert host.ended() == -9
        host.start()
        assert host.pid != before

    def owners(self, vm: str) -> list[str]:
        """Who has the VM, by asking both."""
        found = []
        for name, host in self.hosts.items():
            with Host(host.address) as calls:
                try:
                    calls.get_vm(vm)
                except HostError as error:
                    if error.reason not in ("VM_NOT_FOUND", "VM_MOVED", "MIGRATION_IN_PROGRESS"):
                        raise
                else:
                    found.append(name)
        return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The hosts of all tests here; each test has a VM of its own."""
    with Pair(tmp_path_factory.mktemp("pair")) as made:
        yield made


class Guest:
    """A VM of two vCPUs: 0 has tiles, 1 is parked on a growth that failed, and a thread waits for that."""

    def __init__(self, pair: Pair, stack: ThreadPoolExecutor) -> None:
        pair.count += 1
        self.vm = f"vms/guest-{pair.count}"
        self.vcpus = [f"{self.vm}/vcpus/{nr}" for nr in range(2)]
        with Host(pair.addresses[0]) as host:
            host.create_vm(self.vm.removeprefix("vms/"), labels={"of": "test"})
            host.request_permission(self.vm)
            for nr in range(2):
                host.create_vcpu(self.vm, index=nr)
            self.session = open_session(pair.addresses[0], vcpus=self.vcpus, lease_s=600)
            first, second = map(self.session.vcpu, self.vcpus)
            assert isinstance(first.xsetbv(XCR0_AMX), Done)
            first.submit(RegisterWrite(XTILE_DATA, 0, bytes(range(256)) * 32))
            second.submit(RegisterWrite(SSE, 0, b"parked__" * 32))
            first.hlt()
            host.arm_fault("fpstate.realloc.alloc", errno=12, times=1, vcpu=self.vcpus[1])
            self.parked = _pending(second)
            self.waiting: Future[InstructionOutcome] = stack.submit(second.xsetbv, XCR0_AMX)
            assert self.parked.wait(WAIT_S)
            second.on_pending = None
            self.registers = self._registers(host)

    def _registers(self, host: Host) -> list[object]:
        return [
            (host.get_xsave2(vcpu), host.get_xcrs(vcpu), host.get_msrs(vcpu, (0x1C4, 0x1C5, 0xDA0)))
            for vcpu in self.vcpus
        ]

    def check_on(self, address: str) -> None:
        """All of it is there; the decision there resumes the guest, whose numbers go on."""
        with Host(address) as host:
            assert self._registers(host) == self.registers
            assert dict(host.get_vm(self.vm).labels) == {"of": "test"}
            (record,) = host.list_exits(self.vm, unresolved=True)
            assert (record.vcpu, record.seq, record.generation) == (self.vcpus[1], 2, 1)
            _retry(host.channel, record)
        outcome = self.waiting.result(WAIT_S)
        assert isinstance(outcome, Done)
        assert outcome.reallocated is not None
        first, second = map(self.session.vcpu, self.vcpus)
        assert _data(second.submit(RegisterRead(SSE, 0, 256))) == b"parked__" * 32
        assert _data(first.submit(RegisterRead(XTILE_DATA, 0, 8192))) == bytes(range(256)) * 32
        assert (first.next_seq, second.next_seq) == (5, 4)

    def close(self) -> None:
        """End the session, wherever it is."""
        self.session.close()


def _pending(port: VcpuPort) -> threading.Event:
    heard = threading.Event()
    port.on_pending = lambda _event: heard.set()
    return heard


def _data(outcome: InstructionOutcome) -> bytes:
    assert isinstance(outcome, Done)
    return outcome.data


def _retry(channel: grpc.Channel, record: exit_pb2.Exit) -> None:
    exits = exit_pb2_grpc.ExitServiceStub(channel)
    control = exits.AcquireControl(exit_pb2.AcquireControlRequest(controller_name="test"))
    exits.ResolveExit(
        exit_pb2.ResolveExitRequest(
            name=record.name,
            generation=record.generation,
            control=control.control,
            control_epoch=control.epoch,
            decision=exit_pb2.Decision(retry=exit_pb2.Retry()),
        )
    )


@contextmanager
def guest_of(pair: Pair) -> Iterator[Guest]:
    """A guest with its thread."""
    with ThreadPoolExecutor(1) as threads:
        guest = Guest(pair, threads)
        try:
            yield guest
        finally:
            guest.close()


class Driver:
    """A driver's process."""

    def __init__(self, pair: Pair, vm: str, stop_before: str = "") -> None:
        arguments = [sys.executable, "-m", "tests.migration_driver", *pair.addresses, vm, stop_before]
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        self.steps: list[str] = []

    def reach(self, step: str) -> None:
        """Wait until it says that it is about to take a step."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.steps.append(line.strip())
            if self.steps[-1] == step:
                return
        raise AssertionError(f"the driver ended after {self.steps}")

    def kill(self) -> None:
        """SIGKILL, which it dies of."""
        with self._process:
            self._process.kill()
        assert self._process.returncode == -9

    def finish(self) -> list[str]:
        """Wait for its end, which is a good one; the steps it took."""
        out, _ = self._process.communicate(timeout=WAIT_S)
        assert self._process.returncode == 0, f"the driver failed after {self.steps} {out}"
        return [*self.steps, *out.split("\n")]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name.lower())
@pytest.mark.parametrize("victim", ["source", "target", "driver"])
def test_killed_before_a_step(pair: Pair, victim: str, step: MigrateStep) -> None:
    """Whoever dies, wherever: in the end the target alone has the VM, whole, and the guest goes on."""
    with guest_of(pair) as guest:
        driver = Driver(pair, guest.vm, step.name)
        driver.reach(step.name)
        assert driver.steps == [each.name for each in STEPS[: STEPS.index(step) + 1]]
        owners = pair.owners(guest.vm)
        assert owners == ([] if step is MigrateStep.COMMIT_TARGET else ["source"])
        if victim != "driver":
            pair.kill(victim)
            assert pair.owners(guest.vm) == owners
        driver.kill()
        steps = Driver(pair, guest.vm).finish()
        assert steps[-2] == "DONE 2"
        assert pair.owners(guest.vm) == ["target"]
        guest.check_on(pair.addresses[1])


@pytest.mark.parametrize("step", STEPS[2:-1], ids=lambda step: step.name.lower())
def test_aborted_before_a_step(pair: Pair, step: MigrateStep) -> None:
    """A driver that is gone, both hosts too, and an operator who takes it back: the source has it, as it was."""
    with guest_of(pair) as guest:
        driver = Driver(pair, guest.vm, step.name)
        driver.reach(step.name)
        driver.kill()
        pair.kill("source")
        pair.kill("target")
        assert abort_migration(*pair.addresses, guest.vm, reason="test")
        assert not abort_migration(*pair.addresses, guest.vm)
        assert pair.owners(guest.vm) == ["source"]
        guest.check_on(pair.addresses[0])
        with Host(pair.addresses[1]) as host:
            left = MigrationCalls(host).list(guest.vm)
            assert {each.state for each in left} <= {migration_pb2.MIGRATION_STATE_ABORTED}
            assert host.info().usage.bytes_used == sum(vm.bytes_used for vm in host.list_vms())


@pytest.mark.parametrize("call", ["source", "target"])
def test_an_answer_that_is_lost(pair: Pair, call: str) -> None:
    """The host dies right after its commit: what it did is done, and a driver that never heard of it does the rest."""
    with guest_of(pair) as guest:
        driver = Driver(pair, guest.vm, "COMMIT_SOURCE")
        driver.reach("COMMIT_SOURCE")
        driver.kill()
        with Host(pair.addresses[0]) as source, Host(pair.addresses[1]) as target:
            ours, theirs = MigrationCalls(source), MigrationCalls(target)
            (record,) = (each for each in ours.list(guest.vm) if each.state == migration_pb2.MIGRATION_STATE_BEGUN)
            done = ours.commit(record, proof=theirs.get(record.name).proof)
            if call == "target":
                theirs.commit(record, proof=done.proof)
        pair.kill(call)
        assert Driver(pair, guest.vm).finish() == ["COMMIT_TARGET", "DONE 2", ""]
        assert pair.owners(guest.vm) == ["target"]
        guest.check_on(pair.addresses[1])
