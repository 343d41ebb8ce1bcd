"""Snapshots: everything the machine knows, and a proof that it is."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_lab.injection import action, attributes, hit, table
from fpu_core import alloc, cpu, fpstate, fpu, invariants
from host_agent import exits, state
from host_agent.journal.errors import DamagedError
from host_agent.journal.graph import GraphError, GraphReader, GraphWriter
from host_agent.journal.recovery import Recovered, recover, replay_records
from host_agent.journal.shapes import ENUMS, RECORDS, SHAPES, fields_of
from host_agent.journal.snapshot import (
    SnapshotError,
    load_snapshot,
    read_snapshot,
    snapshot_bytes,
    snapshots,
    write_snapshot,
)
from host_agent.journal.snapshotter import main, make_snapshot
from host_agent.journal.store import Store
from host_agent.kvm import caps, cpuid, vcpu
from host_agent.machine import HANDLERS, HostMachine
from tests.journal.rig import CONFIG, Scribe, changed_byte, history

#: Classes of these modules that are no part of a host's state.
NOT_STATE = {"CoreView", "HostTimeline"}


def test_a_snapshot_is_the_machine(tmp_path: Path) -> None:
    """Loaded, it has the digest, holds every invariant, and would be written as the same bytes."""
    scribe = history()
    path = write_snapshot(tmp_path, scribe.machine.state, 13, 77)
    loaded = load_snapshot(path)
    assert (loaded.n, loaded.crc) == (13, 77)
    assert loaded.machine.digest() == scribe.machine.digest()
    loaded.machine.check()
    assert snapshot_bytes(loaded.machine.state, 13, 77) == path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_loaded_machine_goes_on_as_the_other() -> None:
    """At every point of a history: what came after it comes to the same again, outcome by outcome."""
    scribe = history()
    for n in range(1, len(scribe.bodies)):
        loaded = read_snapshot(_snapshot_at(scribe, n), "s")
        end = replay_records(Recovered(loaded.machine, loaded.n, loaded.crc), scribe.bodies[n:])
        assert end.machine.digest() == scribe.machine.digest()


def _snapshot_at(scribe: Scribe, n: int) -> bytes:
    """The snapshot after record ``n`` of a history."""
    there = replay_records(Recovered(HostMachine(CONFIG), 0, 0), scribe.bodies[:n])
    return snapshot_bytes(there.machine.state, there.n, there.crc)


def test_no_changed_byte_is_accepted(tmp_path: Path) -> None:
    """Whatever part of the file it is in."""
    path = write_snapshot(tmp_path, history().machine.state, 1, 1)
    for offset in range(0, path.stat().st_size, 13):
        with changed_byte(path, offset), pytest.raises(SnapshotError):
            load_snapshot(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SnapshotError):
        load_snapshot(path)


def test_a_machine_with_another_digest_is_refused() -> None:
    """A file that is whole and still not the machine it says: a mistake of ours, and no reason to go on."""
    raw = snapshot_bytes(history().machine.state, 1, 1)
    with pytest.raises(SnapshotError, match="leads to a machine with digest"):
        read_snapshot(_resealed(raw.replace(b'"team"', b'"mate"')), "s")


# -- nothing is forgotten ----------------------------------------------------------------------------------------------


def test_a_number_that_no_register_holds_is_refused() -> None:
    """With a checksum that fits: XCOMP_BV of 128 bits, which only another release would have written."""
    scribe = history()
    body = snapshot_bytes(scribe.machine.state, 1, 2)[: -hashlib.sha256().digest_size]
    xcomp_bv = b"%d" % next(iter(scribe.machine.state.platforms.values())).host.init_fpstate.xcomp_bv
    assert xcomp_bv in body
    raw = body.replace(xcomp_bv, b"%d" % (1 << 127))
    with pytest.raises(SnapshotError, match="cannot be read by this release"):
        read_snapshot(raw + hashlib.sha256(raw).digest(), "s")


@pytest.mark.parametrize(
    "module",
    [state, exits, cpuid, caps, vcpu, fpu, fpstate, cpu, alloc, invariants, action, attributes, hit, table],
    ids=lambda module: module.__name__,
)
def test_every_class_with_state_has_a_shape(module: object) -> None:
    """Every class of these modules that has fields of its own: who adds one finds this test."""
    for name, cls in vars(module).items():
        mine = isinstance(cls, type) and cls.__module__ == getattr(module, "__name__", "")
        if not mine or issubclass(cls, enum.Enum | BaseException) or name in NOT_STATE or name.startswith("_"):
            continue
        assert not fields_of(cls) or name in SHAPES, f"{name} has fields and no shape: add it to RECORDS"


def _classes(hint: object) -> Iterator[type]:
    """The classes that a type hint is made of."""
    args = typing.get_args(hint)
    for each in args:
        yield from _classes(each)
    if not args and isinstance(hint, type):
        yield hint


@pytest.mark.parametrize("command", HANDLERS, ids=lambda command: command.__name__)
def test_every_answer_has_a_shape(command: type) -> None:
    """A request id keeps the answer of its command, so a snapshot holds it."""
    for cls in _classes(typing.get_type_hints(HANDLERS[command])["return"]):
        if dataclasses.is_dataclass(cls):
            assert cls.__name__ in SHAPES, "add its module to _VALUE_MODULES, or the class to RECORDS"
        elif issubclass(cls, enum.Enum):
            assert cls.__name__ in ENUMS, "add its module to _VALUE_MODULES"


def test_every_field_is_saved_or_made_anew() -> None:
    """And what is said to be made anew is a field."""
    for cls, remade in RECORDS.items():
        assert remade <= set(fields_of(cls)), f"{cls.__name__} has no {remade - set(fields_of(cls))}"
        assert set(SHAPES[cls.__name__].saved) | remade == set(fields_of(cls))


def test_a_field_of_an_unknown_class_is_named() -> None:
    """Not a snapshot without it."""

    @dataclasses.dataclass
    class Stowaway:
        luggage: int = 1

    machine = history().machine
    machine.state.requests["r"] = ("CreateVm", Stowaway())
    with pytest.raises(GraphError, match=r"no shape for .*Stowaway"):
        snapshot_bytes(machine.state, 1, 1)


def test_another_releases_fields_are_named() -> None:
    """Both what is gone and what is new; nothing is made up."""
    writer = GraphWriter(history().machine.state)
    entries = [entry for line in writer.lines() for entry in json.loads(line)]
    classes = {name: list(fields) for name, fields in writer.classes().items()}
    classes["Vcpu"] = [*classes["Vcpu"][1:], "wings"]
    with pytest.raises(GraphError, match="class Vcpu has changed: fields that are gone: wings; that are new: agent"):
        GraphReader(classes, writer.blobs).read(entries)


# -- in a directory ----------------------------------------------------------------------------------------------------


def _with_snapshots(directory: Path, *numbers: int) -> Scribe:
    """A journal, and snapshots after some of its records."""
    scribe = history()
    scribe.save(directory)
    for n in numbers:
        raw = _snapshot_at(scribe, n)
        (directory / f"snapshot-{n:020}").write_bytes(raw)
    return scribe


def test_recovery_begins_with_the_newest_good_snapshot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bad one is said and passed over; the records since the older one lead to the same machine."""
    scribe = _with_snapshots(tmp_path / "d", 5, 9)
    for bad, events in ((0, 7), (1, 13), (2, 18)):
        for _, path in snapshots(tmp_path / "d")[:bad]:
            path.write_bytes(b"bad")
        with Store(tmp_path / "d", write=False) as store:
            found = recover(store, CONFIG)
        assert found.machine.digest() == scribe.machine.digest()
        assert found.events == events
    assert "going back to the one before" in caplog.text


def test_records_that_are_gone_need_a_snapshot(tmp_path: Path) -> None:
    """Without a good one nobody knows the beginning, and the text says so."""
    scribe = _with_snapshots(tmp_path / "d", 5)
    with Store(tmp_path / "d", write=True) as store:
        store.forget(4, at_most=100)
        assert recover(store, CONFIG).machine.digest() == scribe.machine.digest()
        snapshots(tmp_path / "d")[0][1].write_bytes(b"bad")
        with pytest.raises(DamagedError, match=r"up to 4 are forgotten.*restore a backup"):
            recover(store, CONFIG)


def test_a_snapshot_of_a_longer_journal_is_found(tmp_path: Path) -> None:
    """Records that the snapshot knows and the journal does not: the books say what is missing."""
    scribe = _with_snapshots(tmp_path / "d", 13)
    with Store(tmp_path / "d", write=True) as store:
        store.truncate(8, int.from_bytes(scribe.bodies[7][1][-4:], "little"))
        with pytest.raises(DamagedError, match="ends with record 13, and its books say 8"):
            recover(store, CONFIG)


def test_the_snapshotter_makes_the_next_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the newest and the records since; and a journal that does not replay has none."""
    scribe = _with_snapshots(tmp_path / "d", 5)
    assert main(str(tmp_path / "d")) == 0
    assert capsys.readouterr().out.strip() == str(len(scribe.bodies))
    assert load_snapshot(snapshots(tmp_path / "d")[0][1]).machine.digest() == scribe.machine.digest()
    assert make_snapshot(tmp_path / "d") == len(scribe.bodies)
    (tmp_path / "d" / "journal.sqlite").write_bytes(b"x" * 9000)
    assert main(str(tmp_path / "d")) == 1
    assert "journal" in capsys.readouterr().err


def _resealed(raw: bytes) -> bytes:
    """With a SHA-256 that fits."""
    return raw[:-32] + hashlib.sha256(raw[:-32]).digest()
