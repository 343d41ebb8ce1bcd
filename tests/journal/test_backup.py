"""Copies of a state directory: of one moment, of a host that goes on, and never over anything."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from host_agent.commands import Tick
from host_agent.journal import compaction
from host_agent.journal.backup import back_up, restore
from host_agent.journal.compaction import forget_parts, forget_records, forget_snapshots
from host_agent.journal.directory import DirectoryLock
from host_agent.journal.errors import DirectoryInUseError, JournalError
from host_agent.journal.inspection import truncate, verify
from host_agent.journal.mark import MARK
from host_agent.journal.recovery import recover
from host_agent.journal.snapshot import snapshots, write_snapshot
from host_agent.journal.snapshotter import make_snapshot
from host_agent.journal.store import DATABASE, Store
from tests.journal.rig import CONFIG, Scribe, history


def test_a_backup_taken_while_the_host_writes(tmp_path: Path) -> None:
    """It holds all that was acknowledged before it was asked for, and is one of the machines that were."""
    scribe = history()
    scribe.save(tmp_path / "d")
    copies = []
    stop = threading.Event()

    def write_on() -> None:
        with Store(tmp_path / "d", write=True) as store:
            while not stop.is_set():
                scribe.do(Tick())
                store.append(scribe.bodies[-1:], len(scribe.bodies), scribe.crc)

    lock = DirectoryLock(tmp_path / "d")
    writing = threading.Thread(target=write_on)
    writing.start()
    try:
        for nr in range(5):
            acknowledged = len(scribe.bodies) - 1
            copied = back_up(tmp_path / "d", tmp_path / f"copy-{nr}")
            assert copied.n >= acknowledged
            copies.append(copied)
            if nr == 2:
                make_snapshot(tmp_path / "d")
    finally:
        stop.set()
        writing.join()
        lock.release()
    for copied in copies:
        assert copied.machine.digest() == scribe.digests[copied.n - 1]
    assert copies[-1].n > copies[0].n, "the host went on"
    assert not verify(tmp_path / "copy-4").problems


def test_a_restored_directory_goes_on(tmp_path: Path) -> None:
    """Backup, restore, and the machine is the one of the backup; the directory is nobody's yet."""
    scribe = history()
    scribe.save(tmp_path / "d")
    write_snapshot(tmp_path / "d", scribe.machine.state, len(scribe.bodies), scribe.crc)
    back_up(tmp_path / "d", tmp_path / "copy")
    found = restore(tmp_path / "copy", tmp_path / "new" / "place")
    assert found.machine.digest() == scribe.machine.digest()
    assert len(snapshots(tmp_path / "new" / "place")) == 1
    DirectoryLock(tmp_path / "new" / "place").release()


def test_nothing_is_copied_over_anything(tmp_path: Path) -> None:
    """Neither a backup nor a restore."""
    history().save(tmp_path / "d")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for copy in (back_up, restore):
        with pytest.raises(DirectoryInUseError, match="not empty"):
            copy(tmp_path / "d", tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_damaged_backup_is_not_restored(tmp_path: Path) -> None:
    """It is proved before anything is made."""
    history().save(tmp_path / "copy")
    with Store(tmp_path / "copy", write=True) as store:
        store.truncate(3, 12345)
    with pytest.raises(JournalError):
        restore(tmp_path / "copy", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# -- compaction --------------------------------------------------------------------------------------------------------


def _long(directory: Path) -> Scribe:
    """A directory with snapshots after records 5, 9 and 13."""
    scribe = Scribe()
    done = history()
    done.save(directory)
    for n in (5, 9, 13):
        with Store(directory, write=False) as store:
            there = recover(store, CONFIG, through=n)
        write_snapshot(directory, there.machine.state, n, there.crc)
    scribe.bodies, scribe.digests, scribe.machine = done.bodies, done.digests, done.machine
    return scribe


def test_the_last_two_snapshots_and_their_records_stay(tmp_path: Path) -> None:
    """What is kept leads to the same machine, from the older one too."""
    scribe = _long(tmp_path / "d")
    older = forget_snapshots(tmp_path / "d")
    assert older == 9
    with Store(tmp_path / "d", write=True) as store:
        while forget_records(store, older):
            pass
        assert store.first() == 10
        for _ in range(2):
            assert recover(store, CONFIG).machine.digest() == scribe.machine.digest()
            snapshots(tmp_path / "d")[0][1].write_bytes(b"bad")
    assert verify(tmp_path / "d").problems


def test_records_go_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit waits for one of them at most."""
    monkeypatch.setattr(compaction, "_PORTION", 4)
    _long(tmp_path / "d")
    with Store(tmp_path / "d", write=True) as store:
        assert forget_records(store, 9)
        assert store.first() == 5
        assert forget_records(store, 9)
        assert not forget_records(store, 9)
        assert store.first() == 10


def test_killed_between_snapshot_and_compaction(tmp_path: Path) -> None:
    """More is there than is needed, and half a snapshot: nothing of it disturbs, and the next compaction takes it."""
    scribe = _long(tmp_path / "d")
    (tmp_path / "d" / "snapshot-00000000000000000099.part").write_bytes(b"half of it")
    with Store(tmp_path / "d", write=True) as store:
        assert recover(store, CONFIG).machine.digest() == scribe.machine.digest()
        store.forget(3, at_most=2)  # and killed again, in the middle of it
    with Store(tmp_path / "d", write=False) as store:
        assert recover(store, CONFIG).machine.digest() == scribe.machine.digest()
    forget_parts(tmp_path / "d")
    assert {path.name[:8] for path in (tmp_path / "d").iterdir()} == {MARK[:8], DATABASE[:8], "snapshot"}
    assert len(list((tmp_path / "d").glob("snapshot*"))) == 3, "the half one is gone"
    assert not verify(tmp_path / "d").problems


# -- cutting off -------------------------------------------------------------------------------------------------------


def test_a_damaged_end_is_cut_off_where_it_is_told(tmp_path: Path) -> None:
    """What stays is checked, the snapshots of what goes go with it, and the rest is the machine of that moment."""
    scribe = _long(tmp_path / "d")
    assert truncate(tmp_path / "d", 10) == 3
    report = verify(tmp_path / "d")
    assert (report.first, report.last, report.snapshots, report.problems) == (1, 10, [9, 5], [])
    assert report.digest == scribe.digests[9]


def test_what_cannot_be_cut_is_left_alone(tmp_path: Path) -> None:
    """Beyond the end, before what is kept, behind a hole, or while a host runs."""
    _long(tmp_path / "d")
    with Store(tmp_path / "d", write=True) as store:
        store.forget(4, at_most=10)
        for after in (3, 99):
            with pytest.raises(JournalError, match=f"there is no record {after}: the journal has 5 to 13"):
                truncate(tmp_path / "d", after)
        store.connection.execute("DELETE FROM record WHERE n = 11")
    with pytest.raises(JournalError, match="record 11 is missing"):
        truncate(tmp_path / "d", 12)
    lock = DirectoryLock(tmp_path / "d")
    with pytest.raises(DirectoryInUseError):
        truncate(tmp_path / "d", 10)
    lock.release()
    assert len(snapshots(tmp_path / "d")) == 3
    assert truncate(tmp_path / "d", 10) == 2
