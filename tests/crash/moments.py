"""Where kills hit: what a process was at in the moment before it was killed.

A process that is to be killed is watched until it is where the kill is aimed at, or for a while; what is counted is
where it really was, not what was aimed at.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

#: The system calls of a commit or a checkpoint. Source: arch/x86/entry/syscalls/syscall_64.tbl.
_WRITING: Final = frozenset({b"18", b"74", b"75", b"77"})  # pwrite64, fsync, fdatasync, ftruncate
_WATCH_S: Final = 0.4


class Moment(enum.Enum):
    """What was killed, and when."""

    HOST_COMMIT = "host, a thread in a write or sync of the journal"
    HOST_SNAPSHOT = "host, while a snapshot is made"
    HOST_RECOVERY = "host, during recovery"
    HOST_START = "host, while it starts"
    HOST_SERVING = "host, between two commits"
    GUEST_BATCH = "guest, with something in flight"
    GUEST_IDLE = "guest, with nothing in flight"
    CONTROLLER_DECISION = "controller, with a decision in flight"
    CONTROLLER_IDLE = "controller, with no decision in flight"


def wait_for(condition: Callable[[], bool], limit_s: float = _WATCH_S, *, pause_s: float = 0.002) -> bool:
    """Look until it is so, or for a while; whether it was. Without a pause it is as fast as one can look."""
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(pause_s)
    return True


class CommitWatch:
    """Looks whether a thread of a process is in a system call that writes or syncs: the journal's alone does such."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._files: list[BinaryIO] = []

    def __call__(self) -> bool:
        """Whether it is. The thread that was seen once is looked at alone from then on: a commit is a short time."""
        if len(self._files) != 1:
            self._open_all()
        for file in self._files:
            with suppress(OSError):
                file.seek(0)
                if file.read(2) in _WRITING:
                    self._keep(file)
                    return True
        return False

    def _keep(self, kept: BinaryIO | None) -> None:
        for file in self._files:
            if file is not kept:
                file.close()
        self._files = [] if kept is None else [kept]

    def close(self) -> None:
        """Look no more."""
        self._keep(None)

    def _open_all(self) -> None:
        self._keep(None)
        for path in self._tasks.glob("*/syscall"):
            with suppress(OSError):
                self._files.append(path.open("rb", buffering=0))


def children_of(pid: int) -> list[int]:
    """The processes that a process has started: a host has none but the one that makes a snapshot."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def has_lock(state_dir: Path, pid: int) -> bool:
    """Whether a starting host has come to its state directory."""
    with suppress(OSError):
        return (state_dir / "lock").read_text().strip() == str(pid)
    return False
