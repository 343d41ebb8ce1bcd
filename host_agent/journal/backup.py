"""A copy of a state directory: of one whose host runs, by SQLite's backup, and back into an empty one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from host_agent.journal.directory import DirectoryLock, make_directory, sync_directory
from host_agent.journal.errors import DirectoryInUseError, JournalError
from host_agent.journal.recovery import Heard, Recovered, recover, unheard
from host_agent.journal.snapshot import snapshots
from host_agent.journal.store import Store
from host_agent.state import HostConfig

_TRIES: Final = 3


def back_up(directory: Path, target: Path, *, heard: Heard = unheard) -> Recovered:
    """Copy a directory while its host goes on, and prove the copy by recovering from it; returns what it leads to.

    The copy is of one moment: everything acknowledged before the call is in it. Raises ``JournalError``, ``OSError``.
    """
    _check_empty(target)
    for left in reversed(range(_TRIES)):
        try:
            return _copy(directory, target, heard)
        except JournalError:
            if not left:
                raise
            shutil.rmtree(target)  # the host made snapshots and forgot records while we copied
    raise AssertionError("the loop returns or raises")


def restore(backup: Path, directory: Path, *, heard: Heard = unheard) -> Recovered:
    """Copy a backup to where a host shall go on with it. Never over something that is there.

    What the host did after the backup is lost, so what comes now is another history, under another boot id.
    """
    _check_empty(directory)
    with Store(backup, write=False) as store:
        recover(store, HostConfig(), heard=heard)  # before anything is made
    recovered = _copy(backup, directory, heard)
    with Store(directory, write=True) as store:
        store.branch()
    return recovered


def _check_empty(target: Path) -> None:
    if target.exists() and any(path.name != "lock" for path in target.iterdir()):
        raise DirectoryInUseError(f"{target} is not empty: name a directory that is, or that does not exist")


def _copy(source: Path, target: Path, heard: Heard) -> Recovered:
    """Snapshots first: the records that they need are kept as long as they are."""
    with Store(source, write=False) as store:
        make_directory(target)
        lock = DirectoryLock(target)
        try:
            for _, path in snapshots(source):
                _copy_synced(path, target)
            with Store(target, write=True) as copy:
                copy.take(store)
                recovered = recover(copy, HostConfig(), heard=heard)
            sync_directory(target)
        finally:
            lock.release()
    return recovered


def _copy_synced(path: Path, target: Path) -> None:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return  # forgotten since it was listed; there are newer ones
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(target / path.name, flags, 0o600), "wb") as out:
        out.write(raw)
        out.flush()
        os.fsync(out.fileno())
