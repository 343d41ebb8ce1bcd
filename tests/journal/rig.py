"""A history to write down, and disks that fail on purpose."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from fault_lab.injection.action import FailErrno
from fault_lab.injection.attributes import FaultAttributes
from host_agent.commands import (
    AcquireControl,
    ArmFault,
    Boot,
    Command,
    CreateVcpu,
    CreateVm,
    OpenSession,
    RequestPermission,
    ResolveExit,
    SubmitBatch,
    Tick,
)
from host_agent.errors import Refused
from host_agent.events import GuestEvent, Rdmsr, RegisterWrite, Wrmsr, Xsetbv
from host_agent.exits import Decision, DecisionKind
from host_agent.journal.command import pack_command
from host_agent.journal.directory import make_directory
from host_agent.journal.outcome import pack_outcome
from host_agent.journal.record import pack_record
from host_agent.journal.store import Store
from host_agent.machine import HostMachine
from host_agent.state import HostConfig

SECOND_NS = 1_000_000_000
CONFIG = HostConfig(host="test-host", boot_id="first-boot", faults=True, check_invariants=True, cpus=2)
VCPU = "vms/a/vcpus/0"


@dataclass
class Scribe:
    """A machine and the records of what it was told, as an agent's journal makes them."""

    machine: HostMachine = field(default_factory=lambda: HostMachine(CONFIG))
    bodies: list[tuple[int, bytes]] = field(default_factory=list)
    #: The machine's digest after each record.
    digests: list[str] = field(default_factory=list)
    crc: int = 0
    now_ns: int = 0

    def do(self, command: Command, *, after_ns: int = 1000) -> Any:  # noqa: ANN401 -- each command has its own reply
        """Carry a command out and write it down; a refusal comes back as a value."""
        self.now_ns += after_ns
        state = self.machine.state
        result: object
        try:
            result = self.machine.apply(command, self.now_ns)
        except Refused as refused:
            result = refused
        outcome = pack_outcome(command, result, self.machine.take_effects())
        body, self.crc = pack_record(self.crc, state.revision, state.now_ns, pack_command(command), outcome)
        self.bodies.append((len(self.bodies) + 1, body))
        self.digests.append(self.machine.digest())
        return result

    def submit(self, session: Any, *kinds: Any) -> Any:  # noqa: ANN401
        """The next events of the one vCPU."""
        seq = self.machine.state.side(self.machine.state.vcpu(VCPU)).next_seq
        events = tuple(GuestEvent(VCPU, seq + nr, kind) for nr, kind in enumerate(kinds))
        return self.do(SubmitBatch(session=session.name, epoch=session.epoch, events=events))

    def save(self, directory: Path) -> None:
        """Write everything into a directory's journal."""
        make_directory(directory)
        store = Store(directory, write=True)
        store.append(self.bodies, len(self.bodies), self.crc)
        store.close_in_peace()


def history() -> Scribe:
    """A bit of everything: a refusal, a failed growth, a decision, a growth, register contents, time."""
    scribe = Scribe()
    scribe.do(Boot(config=CONFIG))
    scribe.do(CreateVm(vm_id="a", labels={"team": "x"}, request_id="one"))
    scribe.do(CreateVm(vm_id="a"))
    scribe.do(RequestPermission(vm="vms/a", feature=18, guest=True))
    scribe.do(CreateVcpu(vm="vms/a", index=0))
    control = scribe.do(AcquireControl(scope="", controller="c"))
    session = scribe.do(OpenSession(client_name="g", vcpus=(VCPU,))).session
    scribe.do(ArmFault(point="fpstate.realloc.alloc", action=FailErrno(12), attributes=FaultAttributes(times=1)))
    scribe.submit(session, Xsetbv(0, 7), RegisterWrite(1, 0, bytes(range(16))), Wrmsr(0x1C4, 1 << 18))
    scribe.submit(session, Xsetbv(0, 0x602E7), Wrmsr(0x1C4, 0), Rdmsr(0x1C4))
    (name,) = scribe.machine.state.exits
    scribe.do(
        ResolveExit(
            exit=name,
            generation=1,
            control=control.name,
            control_epoch=control.epoch,
            decision=Decision(DecisionKind.RETRY),
        )
    )
    scribe.submit(session, RegisterWrite(18, 0, b"tile" * 16), Rdmsr(0x1C4))
    scribe.do(Tick(), after_ns=5 * SECOND_NS)
    return scribe


# -- disks -------------------------------------------------------------------------------------------------------------


class FaultyDisk(apsw.VFS):
    """The system's files, of which the ``nth`` write or sync from ``arm`` on fails, and all after it while ``sticky``.

    ``fired`` proves that it happened. Register it by making it; ``name`` is what a store is opened with.
    """

    _serial = itertools.count()

    def __init__(self) -> None:
        self.name = f"faulty-{next(self._serial)}"
        self.fired = 0
        self.seen = 0
        self._operation = ""
        self._nth = 0
        self._sticky = False
        self._error: type[apsw.Error] = apsw.IOError
        super().__init__(self.name, base="")

    def xOpen(self, name: Any, flags: list[int]) -> _FaultyFile:  # noqa: ANN401 -- apsw's own type
        """Open a file whose writes and syncs are counted."""
        return _FaultyFile(self, name, flags)

    def arm(self, operation: str, nth: int = 1, *, full: bool = False, sticky: bool = False) -> None:
        """Let the ``nth`` "write" or "sync" from now on fail: as an error of the disk, or as a full one."""
        self._operation, self._nth, self._sticky, self.seen = operation, nth, sticky, 0
        self._error = apsw.FullError if full else apsw.IOError

    def disarm(self) -> None:
        """The disk is well again."""
        self._nth = 0

    def hit(self, operation: str) -> None:
        """Called by each file before it writes or syncs."""
        if operation != self._operation or not self._nth:
            return
        self.seen += 1
        if self.seen == self._nth or (self._sticky and self.seen > self._nth):
            self.fired += 1
            raise self._error(f"injected: {operation} {self.seen}")


class _FaultyFile(apsw.VFSFile):
    def __init__(self, disk: FaultyDisk, name: Any, flags: list[int]) -> None:  # noqa: ANN401
        super().__init__("", name, flags)
        self._disk = disk

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.hit("write")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self._disk.hit("sync")
        super().xSync(flags)


@contextmanager
def changed_byte(path: Path, offset: int, mask: int = 0x01) -> Iterator[None]:
    """One byte of a file is another one within the block."""
    raw = bytearray(path.read_bytes())
    raw[offset] ^= mask
    path.write_bytes(raw)
    try:
        yield
    finally:
        raw[offset] ^= mask
        path.write_bytes(raw)


def bodies_after(bodies: Iterable[tuple[int, bytes]], n: int) -> list[tuple[int, bytes]]:
    """The records after a number."""
    return [each for each in bodies if each[0] > n]


FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
