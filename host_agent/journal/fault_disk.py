"""The disk under a journal that is broken on purpose: ``journal.write`` and ``journal.sync`` of docs/faults.md.

Before each group of records both points are asked. What fires fails the next write, or the next sync, of a file of the
journal as the system would fail it, so that everything above takes its own way from there: SQLite, the writer, the
host. Where no fault fires, the files are the system's.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any, Final

import apsw

WRITE: Final = "journal.write"
SYNC: Final = "journal.sync"


class FaultDisk(apsw.VFS):
    """The system's files. ``ask`` says with which errno a point is to fail now, 0 for not at all."""

    def __init__(self, name: str, ask: Callable[[str], int]) -> None:
        self.name = name
        self._ask = ask
        self._lock = threading.Lock()
        self._next: dict[str, int] = {}
        super().__init__(name, base="")

    def before_commit(self) -> None:
        """A group of records is about to be written: ask whether that is to go wrong."""
        for point in (WRITE, SYNC):
            number = self._ask(point)
            if number:
                with self._lock:
                    self._next[point] = number

    def xOpen(self, name: Any, flags: list[int]) -> _File:  # noqa: ANN401, N802 -- apsw's own
        """Open a file whose writes and syncs may fail."""
        return _File(self, name, flags)

    def fail(self, point: str) -> None:
        """Fail an operation that is to fail."""
        with self._lock:
            number = self._next.pop(point, 0)
        if number:
            error = apsw.FullError if number == errno.ENOSPC else apsw.IOError
            raise error(f"a fault at {point}: {errno.errorcode[number]}")


class _File(apsw.VFSFile):
    def __init__(self, disk: FaultDisk, name: Any, flags: list[int]) -> None:  # noqa: ANN401
        super().__init__("", name, flags)
        self._disk = disk

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 -- apsw's own
        self._disk.fail(WRITE)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802 -- apsw's own
        self._disk.fail(SYNC)
        super().xSync(flags)
