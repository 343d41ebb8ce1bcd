"""From the records back to the identical machine; and what is wrong with them is found, named and never guessed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from host_agent.commands import Boot
from host_agent.journal.directory import make_directory
from host_agent.journal.durable import DurableJournal
from host_agent.journal.errors import DamagedError, JournalError, ReplayMismatchError, VersionError
from host_agent.journal.inspection import truncate, verify
from host_agent.journal.journal import JournalOptions
from host_agent.journal.mark import MARK, Mark
from host_agent.journal.record import pack_record, unpack_record
from host_agent.journal.recovery import Recovered, check_tail, read_chain, recover, replay_records
from host_agent.journal.store import DATABASE, Store
from host_agent.machine import HostMachine
from host_agent.state import HostConfig
from tests.core import profiles
from tests.journal.rig import CONFIG, changed_byte, history

FRESH = HostMachine(CONFIG)


def _recovered(directory: Path) -> Recovered:
    with Store(directory, write=False) as store:
        return recover(store, CONFIG)


def test_replay_leads_to_the_identical_machine(tmp_path: Path) -> None:
    """Refusals, failures, decisions and time included: the digest is the same, and so are the place and the chain."""
    scribe = history()
    scribe.save(tmp_path / "d")
    found = _recovered(tmp_path / "d")
    assert found.machine.digest() == scribe.machine.digest()
    assert (found.n, found.crc) == (len(scribe.bodies), scribe.crc)


def test_every_prefix_is_a_machine_that_was() -> None:
    """Whatever was committed last, the machine is the one of that moment."""
    scribe = history()
    for n in range(1, len(scribe.bodies) + 1):
        found = replay_records(Recovered(HostMachine(CONFIG), 0, 0), scribe.bodies[:n])
        assert found.machine.digest() == scribe.digests[n - 1]


def test_the_first_record_brings_the_configuration(tmp_path: Path) -> None:
    """What the new process is started with comes by its own Boot, not through the past."""
    scribe = history()
    scribe.save(tmp_path / "d")
    with Store(tmp_path / "d", write=False) as store:
        other = recover(store, HostConfig(host="elsewhere", boot_id="b"))
    assert other.machine.digest() == scribe.machine.digest()


def test_a_missing_record_is_found(tmp_path: Path) -> None:
    """In the middle by its number, at the end by the books; both texts say what to do."""
    scribe = history()
    scribe.save(tmp_path / "d")
    last = len(scribe.bodies)
    _sql(tmp_path / "d", "DELETE FROM record WHERE n = (SELECT max(n) FROM record)")
    with pytest.raises(DamagedError, match=f"ends with record {last - 1}, and its books say {last}.*--truncate-after"):
        _recovered(tmp_path / "d")
    _sql(tmp_path / "d", "DELETE FROM record WHERE n = 4")
    with pytest.raises(DamagedError, match=r"record 4 is missing.*--truncate-after 3") as caught:
        _recovered(tmp_path / "d")
    assert caught.value.n == 4


def test_records_out_of_order_are_found(tmp_path: Path) -> None:
    """Two whole records that have changed places."""
    history().save(tmp_path / "d")
    _sql(
        tmp_path / "d",
        "CREATE TEMP TABLE t AS SELECT n, body FROM record WHERE n IN (3, 4);"
        "UPDATE record SET body = (SELECT body FROM t WHERE t.n = 7 - record.n) WHERE n IN (3, 4)",
    )
    with pytest.raises(DamagedError, match="record 3 is damaged: its checksum") as caught:
        _recovered(tmp_path / "d")
    assert caught.value.n == 3


def test_another_outcome_is_reported_precisely() -> None:
    """Record, command, what was expected and what was found; nobody decides which is right.

    What may hold register content is apart from the text that goes into logs and to clients.
    """
    scribe = history()
    bodies, crc = [], 0
    for n, body in scribe.bodies:
        was = unpack_record(body, _crc_before(scribe.bodies, n))
        # The flags of the batch's first outcome, which is "done": it skipped its instruction, and now did not.
        outcome = was.outcome if n != 9 else was.outcome[:2] + bytes([was.outcome[2] ^ 4]) + was.outcome[3:]
        again, crc = pack_record(crc, was.revision, was.now_ns, was.command, outcome)
        bodies.append((n, again))
    with pytest.raises(ReplayMismatchError) as caught:
        replay_records(Recovered(HostMachine(CONFIG), 0, 0), bodies)
    text = str(caught.value)
    assert caught.value.n == 9
    assert "record 9, SubmitBatch, led to something else" in text
    assert "\n" not in text
    command, expected, found = caught.value.details.splitlines()
    assert "SubmitBatch" in command
    assert expected.startswith("  expected: revision")
    assert found.startswith("  found:    revision")
    assert "--truncate-after 8" in text


def test_other_rules_are_not_replayed() -> None:
    """The text says which release can."""
    body = bytearray(pack_record(0, 1, 1, b"\x00null", b"")[0])
    body[1] = 99
    raw, _ = _resealed(bytes(body))
    with pytest.raises(JournalError, match=r"rules 99.*docs/storage\.md"):
        replay_records(Recovered(FRESH, 1, 0), [(2, raw)])


@pytest.mark.timeout(600)
def test_no_changed_byte_of_the_file_is_accepted(tmp_path: Path) -> None:
    """Each byte of a small journal in turn: found, or what is read is what was written all the same.

    Where the file is nothing but zeros, every eleventh byte stands for its neighbours unless the long profile is on.
    """
    scribe = history()
    scribe.save(tmp_path / "d")
    path = tmp_path / "d" / DATABASE
    raw = path.read_bytes()
    every = os.environ.get(profiles.PROFILE_VARIABLE) == "long"
    found = 0
    for offset in range(len(raw)):
        if not (every or raw[offset] or offset % 11 == 0):
            continue
        with changed_byte(path, offset):
            try:
                read = _read_through(tmp_path / "d")
            except JournalError:
                found += 1
            else:
                assert read == scribe.bodies, f"byte {offset} changed what was read"
    assert found > sum(len(body) - body.count(0) for _, body in scribe.bodies), "every byte of every record, at least"


def _read_through(directory: Path) -> list[tuple[int, bytes]]:
    """Every record, checked as recovery checks it."""
    with Store(directory, write=False) as store:
        bodies = list(store.bodies(0))
        n, crc = 0, 0
        for number, record in read_chain(bodies, 0, 0):
            n, crc = number, record.crc
        check_tail(store, n, crc)
    return bodies


def test_a_torn_commit_never_was(tmp_path: Path) -> None:
    """The WAL cut off anywhere: the machine is one of those that were, and never a later one than was written.

    That is a power cut: nobody was told of what is lost. Where the mark says that somebody was, it is damage.
    """
    scribe = history()
    make_directory(tmp_path / "live")
    with Store(tmp_path / "live", write=True) as store:
        crc = 0
        for n, body in scribe.bodies:
            crc = unpack_record(body, crc).crc
            store.append([(n, body)], n, crc)
        shutil.copytree(tmp_path / "live", tmp_path / "torn")
        wal = (tmp_path / "live" / f"{DATABASE}-wal").read_bytes()
    known = {0: HostMachine(CONFIG).digest()} | dict(enumerate(scribe.digests, 1))
    ends = []
    for size in range(len(wal), 4096 * 6, -509):
        (tmp_path / "torn" / f"{DATABASE}-wal").write_bytes(wal[:size])
        (tmp_path / "torn" / f"{DATABASE}-shm").unlink(missing_ok=True)
        copy = tmp_path / f"cut-{size}"
        shutil.copytree(tmp_path / "torn", copy)
        mark = (copy / MARK).read_bytes()
        (copy / MARK).unlink()
        found = _recovered(copy)
        assert found.machine.digest() == known[found.n]
        ends.append(found.n)
        (copy / MARK).write_bytes(mark)
        if found.n < len(scribe.bodies):
            with pytest.raises(
                DamagedError, match=rf"record {len(scribe.bodies)} was acknowledged.* ends .* {found.n}:"
            ):
                _recovered(copy)
        shutil.rmtree(copy)
    assert ends[0] == len(scribe.bodies)
    assert ends == sorted(ends, reverse=True)
    assert len(set(ends)) > 3, "commits were lost, one by one"


def test_a_flipped_bit_in_the_last_commits_is_no_power_cut(tmp_path: Path) -> None:
    """Each frame of the log in turn: what was acknowledged and is gone is missed, though SQLite and the books are fine.

    The way out is the one of every damaged end.
    """
    scribe = history()
    make_directory(tmp_path / "live")
    with Store(tmp_path / "live", write=True) as store:
        for (n, body), crc in zip(scribe.bodies, _crcs(scribe.bodies), strict=True):
            store.append([(n, body)], n, crc)
        shutil.copytree(tmp_path / "live", tmp_path / "d")
    wal = tmp_path / "d" / f"{DATABASE}-wal"
    found = 0
    for offset in range(32 + 24 + 2000, wal.stat().st_size, 24 + 4096):
        (tmp_path / "d" / f"{DATABASE}-shm").unlink(missing_ok=True)
        with changed_byte(wal, offset), suppress(DamagedError, VersionError):
            _recovered(tmp_path / "d")
            continue
        found += 1
    assert found == len(range(32 + 24 + 2000, wal.stat().st_size, 24 + 4096)), "every frame counts"
    assert _recovered(tmp_path / "d").n == len(scribe.bodies), "looking at it has changed nothing"


def test_the_mark_of_another_end_is_found(tmp_path: Path) -> None:
    """The number is there, and the record is not the one that was acknowledged. A damaged mark accuses nobody."""
    scribe = history()
    scribe.save(tmp_path / "d")
    mark = Mark(tmp_path / "d")
    mark.put(5, 1234)
    with pytest.raises(DamagedError, match=r"record 5 is not the one that was acknowledged.*--truncate-after 4"):
        _recovered(tmp_path / "d")
    mark.put(13, scribe.crc)
    mark.close()
    with changed_byte(tmp_path / "d" / MARK, 3):
        assert _recovered(tmp_path / "d").n == 13
        (problem,) = verify(tmp_path / "d").problems
        assert "committed is damaged" in problem


def test_a_host_that_cannot_start_leaves_the_evidence(tmp_path: Path) -> None:
    """The damaged log is there for whoever looks next, and the directory is free."""
    scribe = history()
    make_directory(tmp_path / "live")
    with Store(tmp_path / "live", write=True) as store:
        store.append(scribe.bodies[:12], 12, list(_crcs(scribe.bodies))[11])
        store.append(scribe.bodies[12:], 13, scribe.crc)
    wal = tmp_path / "live" / f"{DATABASE}-wal"
    with changed_byte(wal, wal.stat().st_size - 100):
        damaged = wal.read_bytes()
        for _ in range(2):
            with pytest.raises(DamagedError, match="record 13 was acknowledged, and the journal ends with record 12"):
                DurableJournal(JournalOptions(directory=tmp_path / "live"), CONFIG)
        assert wal.read_bytes() == damaged
    assert _recovered(tmp_path / "live").n == 13


def test_a_cut_end_is_the_end(tmp_path: Path) -> None:
    """What is given up is not missed afterwards."""
    history().save(tmp_path / "d")
    truncate(tmp_path / "d", 10)
    assert _recovered(tmp_path / "d").n == 10


def _crcs(bodies: list[tuple[int, bytes]]) -> Iterator[int]:
    crc = 0
    for _, body in bodies:
        crc = unpack_record(body, crc).crc
        yield crc


def test_a_boot_of_another_history_keeps_what_there_is() -> None:
    """Serials and epochs go on beyond any that were handed out; sessions, vCPUs' uids and the time stay."""
    scribe = history()
    state = scribe.machine.state
    serial, epoch = state.serial, state.epoch
    kept = (dict(state.sessions), state.now_ns, state.vcpu_uid(state.vcpu("vms/a/vcpus/0")))
    scribe.do(Boot(config=CONFIG), after_ns=0)
    assert (state.serial, state.epoch) == (serial, epoch), "the same history goes on"
    scribe.do(Boot(config=replace(CONFIG, boot_id="second-boot")), after_ns=0)
    assert state.config.boot_id == "second-boot"
    assert state.serial >= serial + (1 << 32)
    assert state.epoch >= epoch + (1 << 32)
    assert (dict(state.sessions), state.now_ns, state.vcpu_uid(state.vcpu("vms/a/vcpus/0"))) == kept


def _sql(directory: Path, statements: str) -> None:
    """Change the file behind our back."""
    connection = sqlite3.connect(directory / DATABASE)
    connection.executescript(statements)
    connection.commit()
    connection.close()


def _crc_before(bodies: list[tuple[int, bytes]], n: int) -> int:
    crc = 0
    for number, body in bodies:
        if number == n:
            return crc
        crc = unpack_record(body, crc).crc
    raise AssertionError(n)


def _resealed(raw: bytes) -> tuple[bytes, int]:
    crc = zlib.crc32(raw[:-4])
    return raw[:-4] + struct.pack("<I", crc), crc
