"""The state directory: who may write in it, and that its names survive a power cut.

DIR/lock              held by the one process that may write; its text is that process's id
DIR/journal.sqlite    the records; with -wal and -shm beside it while it is open
DIR/committed         which record was committed last
DIR/snapshot-N        the machine as it was after record N
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from host_agent.journal.errors import DirectoryInUseError


class DirectoryLock:
    """The right to write in a directory, held until ``release`` or the end of the process, however that comes."""

    def __init__(self, directory: Path) -> None:
        """Take it. Raises ``DirectoryInUseError`` if another process has it."""
        path = directory / "lock"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise DirectoryInUseError(
                f"{directory} is in use by another host agent (process {holder}): stop that one, or name another "
                "directory with --state-dir"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give it up."""
        os.close(self._fd)


def make_directory(directory: Path) -> None:
    """Make a directory that only its user can enter, and let its name survive a power cut."""
    if not directory.is_dir():
        directory.mkdir(mode=0o700, parents=True)
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Let the names in a directory survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
