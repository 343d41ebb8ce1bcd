"""Files that fail on purpose, and that can forget what was never synced: a SQLite VFS of the host under test.

Armed by lines of the harness ("arm KIND NTH"), off until then. Each fault that fires is said, so that the harness can
count it. Beside every file that is written lies FILE.undo: what each write since the last sync has replaced.
``power_cut`` takes a choice of these back, sector by sector, as a disk does that had not come to them yet.

A cache of a disk may write its sectors in any order, and the older content of a sector stays as long as it has not come
to it. Source: man 2 fsync; sqlite.org/atomiccommit.html, "Hardware Assumptions".
"""

from __future__ import annotations

import os
import random
import struct
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import apsw

#: What may be armed: the operation, and how it fails.
KINDS: Final = {
    "write-io": ("write", apsw.IOError),
    "write-full": ("write", apsw.FullError),
    "write-short": ("write", apsw.IOError),
    "write-short-full": ("write", apsw.FullError),
    "sync-io": ("sync", apsw.IOError),
    "truncate-io": ("truncate", apsw.IOError),
    "size-io": ("size", apsw.IOError),
    "read-io": ("read", apsw.IOError),
}
SECTOR_BYTES: Final = 512
#: Offset of the write (or the size before, of a truncation), size of the file before, what it replaced, what came.
_UNDO: Final = struct.Struct("<QQII")


class FaultyDisk(apsw.VFS):
    """The system's files, with faults. ``on_fired`` is told the kind of each that fires."""

    def __init__(self, name: str, on_fired: Any) -> None:  # noqa: ANN401 -- any callable
        self._on_fired = on_fired
        #: Whether syncs are answered and not done.
        self.lies = False
        self._armed: dict[str, tuple[str, int]] = {}
        self._lock = threading.Lock()
        super().__init__(name, base="")

    def xOpen(self, name: Any, flags: list[int]) -> _FaultyFile:  # noqa: ANN401 -- apsw's own type
        """Open a file whose operations are counted, and whose unsynced writes are remembered."""
        return _FaultyFile(self, name, flags)

    def arm(self, kind: str, nth: int) -> None:
        """Let the ``nth`` operation from now on fail, once."""
        with self._lock:
            self._armed[KINDS[kind][0]] = (kind, nth)

    def hit(self, operation: str) -> str:
        """Called before each operation; the kind of the fault that is to happen now, or nothing."""
        with self._lock:
            kind, left = self._armed.get(operation, ("", 0))
            if not kind:
                return ""
            if left > 1:
                self._armed[operation] = (kind, left - 1)
                return ""
            del self._armed[operation]
        self._on_fired(kind)
        return kind

    def fail(self, operation: str) -> None:
        """Called before an operation that fails as a whole or not at all."""
        kind = self.hit(operation)
        if kind:
            raise KINDS[kind][1](f"injected: {kind}")


class _FaultyFile(apsw.VFSFile):
    """A file of that disk."""

    def __init__(self, disk: FaultyDisk, name: Any, flags: list[int]) -> None:  # noqa: ANN401
        super().__init__("", name, flags)
        self._disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._path = str(path)
        self._undo = os.open(f"{path}.undo", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def xWrite(self, data: bytes, offset: int) -> None:
        kind = self._disk.hit("write")
        if not kind:
            self._remember(offset, len(data))
            super().xWrite(data, offset)
            return
        if "short" in kind:
            self._remember(offset, len(data) // 2)
            super().xWrite(data[: len(data) // 2], offset)
        raise KINDS[kind][1](f"injected: {kind}")

    def xSync(self, flags: int) -> None:
        self._disk.fail("sync")
        if not self._disk.lies:
            super().xSync(flags)
            os.ftruncate(self._undo, 0)

    def xTruncate(self, newsize: int) -> None:
        self._disk.fail("truncate")
        self._remember(newsize, max(0, super().xFileSize() - newsize))
        super().xTruncate(newsize)

    def xFileSize(self) -> int:
        self._disk.fail("size")
        return super().xFileSize()

    def xRead(self, amount: int, offset: int) -> bytes:
        self._disk.fail("read")
        return super().xRead(amount, offset)

    def xClose(self) -> None:
        os.close(self._undo)
        super().xClose()

    def _remember(self, offset: int, length: int) -> None:
        """Note what a write is going to replace; one write of ours, so a kill leaves all of it or nothing."""
        size = super().xFileSize()
        there = min(length, max(0, size - offset))
        old = super().xRead(there, offset) if there else b""
        os.write(self._undo, _UNDO.pack(offset, size, len(old), length) + old)


def power_cut(directory: Path, chance: random.Random) -> int:
    """After a ``kill -9``: let the disk forget what was not synced, or some of it; returns how many sectors it were."""
    return sum(_forget(undo, chance) for undo in sorted(directory.glob("*.undo")))


def _forget(undo: Path, chance: random.Random) -> int:
    path = undo.with_suffix("")
    raw = undo.read_bytes()
    undo.unlink()
    if not raw or not path.exists():
        return 0
    content = bytearray(path.read_bytes())
    size = len(content)
    writes = _writes(raw)
    #: Of each sector: from which of its writes on nothing has come to the disk.
    kept: dict[int, int] = {}
    touched: dict[int, int] = defaultdict(int)
    for offset, _, length, _ in writes:
        for sector in _sectors(offset, length):
            touched[sector] += 1
    for sector, count in touched.items():
        kept[sector] = chance.randint(0, count)
    content.extend(bytes(max(0, max((o + n for o, _, n, _ in writes), default=0) - size)))
    lost = 0
    for offset, before, length, old in reversed(writes):
        old_padded = old.ljust(length, b"\0")
        for sector in _sectors(offset, length):
            touched[sector] -= 1
            if touched[sector] >= kept[sector]:
                begin, end = max(offset, sector * SECTOR_BYTES), min(offset + length, (sector + 1) * SECTOR_BYTES)
                content[begin:end] = old_padded[begin - offset : end - offset]
                lost += 1
        size = chance.choice((size, before))
    path.write_bytes(content[:size])
    return lost


def _sectors(offset: int, length: int) -> range:
    return range(offset // SECTOR_BYTES, (offset + length + SECTOR_BYTES - 1) // SECTOR_BYTES)


def _writes(raw: bytes) -> list[tuple[int, int, int, bytes]]:
    """(offset, size of the file before, length, what was there) of each write, oldest first."""
    found, at = [], 0
    while at + _UNDO.size <= len(raw):
        offset, size, old, length = _UNDO.unpack_from(raw, at)
        at += _UNDO.size
        found.append((offset, size, length, raw[at : at + old]))
        at += old
    return found
