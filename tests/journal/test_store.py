"""The directory: whose it is, which version it has, and who may be in it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from host_agent.journal.directory import DirectoryLock, make_directory
from host_agent.journal.errors import DamagedError, DirectoryInUseError, JournalError, VersionError
from host_agent.journal.store import DATABASE, Store, check_sqlite_version


def test_the_directory_is_its_users(tmp_path: Path) -> None:
    """Nobody else can enter it, and nobody else could read what is in it."""
    make_directory(tmp_path / "a" / "b")
    with Store(tmp_path / "a" / "b", write=True) as store:
        store.append([(1, b"x")], 1, 1)
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a" / "b").iterdir()}
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert set(modes.values()) == {0o600}
    assert f"{DATABASE}-wal" in modes


def test_a_second_agent_is_told_whose_the_directory_is(tmp_path: Path) -> None:
    """By its process id; once the first has gone, however it went, the next may come."""
    lock = DirectoryLock(tmp_path)
    with pytest.raises(DirectoryInUseError, match=f"process {os.getpid()}.*--state-dir"):
        DirectoryLock(tmp_path)
    lock.release()
    DirectoryLock(tmp_path).release()


@pytest.mark.parametrize(("version", "good"), [("3.51.2", False), ("3.40.1", False), ("3.51.3", True), ("4.0.0", True)])
def test_a_sqlite_that_can_lose_commits_is_refused(version: str, good: bool) -> None:
    """By its version; the one that is installed is good."""
    check_sqlite_version()
    if good:
        check_sqlite_version(version)
    else:
        with pytest.raises(VersionError, match=version):
            check_sqlite_version(version)


def test_another_schema_is_not_touched(tmp_path: Path) -> None:
    """A later release's directory stays as it is, and the text says where to read on."""
    Store(tmp_path, write=True).close()
    _sql(tmp_path, "PRAGMA user_version = 7")
    with pytest.raises(VersionError, match=r"schema version 7; this release reads 1.*docs/storage.md"):
        Store(tmp_path, write=True)


def test_a_foreign_file_is_not_touched(tmp_path: Path) -> None:
    """Neither another program's database, nor something that is none."""
    _sql(tmp_path, "CREATE TABLE mine (x)")
    with pytest.raises(VersionError, match="not a journal of fpstated"):
        Store(tmp_path, write=True)
    (tmp_path / DATABASE).write_bytes(b"not a database" * 500)
    with pytest.raises(JournalError):
        Store(tmp_path, write=True)


def test_a_reader_makes_nothing(tmp_path: Path) -> None:
    """Where there is no journal there is none afterwards."""
    with pytest.raises(JournalError):
        Store(tmp_path, write=False)
    assert not list(tmp_path.iterdir())


def test_commits_survive_the_end_of_the_process(tmp_path: Path) -> None:
    """A connection that was never closed has lost nothing."""
    store = Store(tmp_path, write=True)
    store.append([(1, b"one"), (2, b"two")], 2, 77)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tmp_path.glob(f"{DATABASE}*"):
        if not path.name.endswith("-shm"):
            (copy / path.name).write_bytes(path.read_bytes())
    with Store(copy, write=False) as again:
        assert list(again.bodies(0)) == [(1, b"one"), (2, b"two")]
        assert again.tail() == (2, 77)
    store.close()


def test_commits_are_all_or_nothing(tmp_path: Path) -> None:
    """A record number that is taken refuses the whole commit, and the books with it."""
    with Store(tmp_path, write=True) as store:
        store.append([(1, b"one")], 1, 11)
        with pytest.raises(JournalError):
            store.append([(2, b"two"), (1, b"again")], 2, 22)
        assert list(store.bodies(0)) == [(1, b"one")]
        assert store.tail() == (1, 11)


def test_forgetting_and_truncating(tmp_path: Path) -> None:
    """From the front in portions, from the end with the books."""
    with Store(tmp_path, write=True) as store:
        store.append([(n, b"x" * 4 + bytes([n, 0, 0, 0])) for n in range(1, 11)], 10, 100)
        assert store.forget(6, at_most=4) == 4
        assert store.forget(6, at_most=4) == 2
        assert store.forget(6, at_most=4) == 0
        assert (store.first(), store.last(), store.base()) == (7, 10, (6, 6))
        assert store.truncate(8, 80) == 2
        assert (store.first(), store.last(), store.tail()) == (7, 8, (8, 80))
        assert store.integrity() == "ok"


def test_books_that_are_gone_are_missed(tmp_path: Path) -> None:
    """The entry about the last record cannot be left out."""
    Store(tmp_path, write=True).close()
    _sql(tmp_path, "DELETE FROM book")
    with Store(tmp_path, write=False) as store, pytest.raises(DamagedError, match="no good entry 'tail'"):
        store.tail()


def _sql(directory: Path, statement: str) -> None:
    connection = sqlite3.connect(directory / DATABASE)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_the_log_is_written_from_its_beginning_again(tmp_path: Path) -> None:
    """After a checkpoint the next commit begins it anew; closed in peace it is no more, else it stays as it is."""
    store = Store(tmp_path, write=True)
    for n in range(1, 20):
        store.append([(n, b"x" * 1000)], n, n)
    grown = store.wal_pages
    assert store.checkpoint() == 0
    store.append([(20, b"x")], 20, 20)
    assert 0 < store.wal_pages < grown
    store.close()
    assert (tmp_path / f"{DATABASE}-wal").stat().st_size
    Store(tmp_path, write=True).close_in_peace()
    assert not (tmp_path / f"{DATABASE}-wal").exists()
