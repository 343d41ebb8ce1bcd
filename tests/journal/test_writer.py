"""The thread that commits: what waits goes together, and what the disk refuses was never acknowledged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from host_agent.journal.errors import JournalError, StorageFailedError, StorageFullError
from host_agent.journal.store import Store
from host_agent.journal.writer import Listener, Writer
from tests.journal.rig import FaultyDisk, history

WAIT_S = 60


@dataclass
class Heard:
    """What a writer said."""

    committed: list[int] = field(default_factory=list)
    full: list[StorageFullError] = field(default_factory=list)
    rooms: int = 0
    failed: list[JournalError] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def listener(self) -> Listener:
        """For a writer."""
        return Listener(
            committed=lambda n: self._note(lambda: self.committed.append(n)),
            full=lambda error: self._note(lambda: self.full.append(error)),
            room=lambda: self._note(lambda: setattr(self, "rooms", self.rooms + 1)),
            failed=lambda error: self._note(lambda: self.failed.append(error)),
        )

    def _note(self, what: object) -> None:
        with self.news:
            assert callable(what)
            what()
            self.news.notify_all()

    def until(self, what: object) -> None:
        """Wait until something was said."""
        assert callable(what)
        with self.news:
            assert self.news.wait_for(what, WAIT_S), "it was never said"


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    """A disk that fails on demand."""
    faulty = FaultyDisk()
    yield faulty
    faulty.unregister()


def _writer(tmp_path: Path, disk: FaultyDisk | None = None) -> tuple[Store, Writer, Heard]:
    store = Store(tmp_path, write=True, vfs=disk.name if disk else "")
    heard = Heard()
    writer = Writer(store, heard.listener(), probe_interval_s=0.01)
    return store, writer, heard


def _append(writer: Writer, first: int, last: int) -> None:
    for n in range(first, last + 1):
        writer.append(n, b"record %d" % n, n)


def test_what_waits_is_committed_together(tmp_path: Path) -> None:
    """While one commit runs the next ones queue up, and all of them go into one."""
    store, writer, heard = _writer(tmp_path)
    busy, free = threading.Event(), threading.Event()

    def hold(_store: Store) -> None:
        busy.set()
        free.wait(WAIT_S)

    writer.start()
    writer.run(hold)
    assert busy.wait(WAIT_S)
    _append(writer, 1, 50)
    free.set()
    heard.until(lambda: heard.committed)
    writer.close()
    assert heard.committed == [50]
    assert [n for n, _ in store.bodies(0)] == list(range(1, 51))
    assert store.tail() == (50, 50)
    store.close()


def test_closing_commits_what_is_queued(tmp_path: Path) -> None:
    """Nothing that was taken is left behind."""
    store, writer, heard = _writer(tmp_path)
    _append(writer, 1, 3)
    writer.start()
    writer.close()
    assert heard.committed[-1] == 3
    assert store.last() == 3
    store.close()


@pytest.mark.parametrize("operation", ["write", "sync"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_failed_write_or_sync_ends_it(tmp_path: Path, disk: FaultyDisk, operation: str, nth: int) -> None:
    """One error that is no full disk, at any step of a commit: nothing more is committed, and it is said once."""
    store, writer, heard = _writer(tmp_path, disk)
    writer.start()
    _append(writer, 1, 1)
    heard.until(lambda: heard.committed == [1])
    disk.arm(operation, nth)
    n = 2
    while not heard.failed:
        _append(writer, n, n)
        heard.until(lambda n=n: heard.failed or heard.committed[-1] >= n)
        n += 1
    disk.disarm()
    _append(writer, n, n + 3)
    writer.close()
    assert disk.fired == 1
    assert len(heard.failed) == 1
    assert isinstance(heard.failed[0], StorageFailedError)
    assert not heard.full
    store.close()
    with Store(tmp_path, write=False) as again:
        assert again.tail()[0] >= heard.committed[-1], "what was acknowledged is there"


@pytest.mark.parametrize("full", [False, True], ids=["error", "full"])
@pytest.mark.parametrize("operation", ["write", "sync"])
@pytest.mark.parametrize("nth", range(1, 30))
def test_wherever_the_disk_fails_the_acknowledged_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, nth: int, full: bool
) -> None:
    """Commits and checkpoints, each broken at each of its steps: what is found is a beginning of what was written.

    It has everything that was acknowledged, and the books agree with it.
    """
    monkeypatch.setattr("host_agent.journal.writer.CHECKPOINT_PAGES", 8)
    disk = FaultyDisk()
    store, writer, heard = _writer(tmp_path, disk)
    writer.start()
    disk.arm(operation, nth, full=full)
    for n in range(1, 13):
        _append(writer, n, n)
        heard.until(lambda n=n: heard.failed or heard.full or (heard.committed and heard.committed[-1] == n))
        if heard.failed or heard.full:
            break
    disk.disarm()
    writer.close()
    with suppress(JournalError):
        store.close()
    disk.unregister()
    with Store(tmp_path, write=False) as again:
        found = list(again.bodies(0))
        assert found == [(n, b"record %d" % n) for n in range(1, len(found) + 1)]
        assert again.tail() == (len(found), len(found))
        assert len(found) >= (heard.committed[-1] if heard.committed else 0)
        assert again.integrity() == "ok"
    assert disk.fired == 1 or nth > disk.seen, "it failed, or there were not so many"


def test_a_full_disk_is_waited_for(tmp_path: Path, disk: FaultyDisk) -> None:
    """The owner is told, drops what was queued, and hears when there is room; then it goes on."""
    store, writer, heard = _writer(tmp_path, disk)
    writer.start()
    _append(writer, 1, 1)
    heard.until(lambda: heard.committed == [1])
    disk.arm("write", 1, full=True, sticky=True)
    _append(writer, 2, 5)
    heard.until(lambda: heard.full)
    assert disk.fired
    _append(writer, 6, 6)
    writer.resume()
    fired = disk.fired
    heard.until(lambda: True)
    disk.disarm()
    heard.until(lambda: heard.rooms)
    assert disk.fired >= fired
    _append(writer, 2, 3)
    heard.until(lambda: heard.committed[-1] == 3)
    writer.close()
    assert [n for n, _ in store.bodies(0)] == [1, 2, 3]
    assert len(heard.full) == 1
    assert not heard.failed
    store.close()


def test_no_room_is_looked_for_before_the_owner_has_answered(tmp_path: Path, disk: FaultyDisk) -> None:
    """Otherwise records that stand on lost ones would be committed."""
    store, writer, heard = _writer(tmp_path, disk)
    writer.start()
    disk.arm("write", 1, full=True)
    _append(writer, 1, 1)
    heard.until(lambda: heard.full)
    _append(writer, 2, 2)
    with heard.news:
        assert not heard.news.wait_for(lambda: heard.rooms or heard.committed, 0.1)
    writer.resume()
    heard.until(lambda: heard.rooms)
    writer.close()
    assert store.last() == 0
    store.close()


def test_a_checkpoint_that_fails_ends_it(tmp_path: Path, disk: FaultyDisk) -> None:
    """What SQLite would keep to itself: after a failed sync of the file the WAL must not be used up."""
    store, writer, heard = _writer(tmp_path, disk)
    writer.start()
    _append(writer, 1, 100)
    heard.until(lambda: heard.committed and heard.committed[-1] == 100)
    disk.arm("sync", 2)  # a checkpoint syncs the WAL, then the file

    def checkpoint(used: Store) -> None:
        used.checkpoint()

    writer.run(checkpoint)
    heard.until(lambda: heard.failed)
    writer.close()
    assert disk.fired == 1
    store.close()


def test_history_is_written_and_read(tmp_path: Path) -> None:
    """Through the thread, and back through the store."""
    scribe = history()
    store, writer, _heard = _writer(tmp_path)
    crc = 0
    for n, body in scribe.bodies:
        crc = int.from_bytes(body[-4:], "little")
        writer.append(n, body, crc)
    writer.start()
    writer.close()
    assert list(store.bodies(0)) == scribe.bodies
    assert store.tail() == (len(scribe.bodies), scribe.crc)
    store.close()
