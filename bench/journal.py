"""The journal: what a record costs to make, to commit and to carry out again, each beside its own floor.

What computes alone is measured in time of the processor, so that nobody else on the machine is waited for.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from bench.report import Row, counted, measured, paired
from host_agent.commands import Boot, Command, CreateVcpu, CreateVm, OpenSession, RequestPermission, SubmitBatch
from host_agent.events import GuestEvent, Rdmsr, RegisterWrite, Wrmsr, Xsetbv
from host_agent.journal.command import pack_command, unpack_command
from host_agent.journal.directory import make_directory
from host_agent.journal.journal import JournalOptions
from host_agent.journal.outcome import pack_outcome
from host_agent.journal.record import pack_record
from host_agent.journal.recovery import Recovered, recover, replay_records
from host_agent.journal.snapshot import snapshots as snapshots_of
from host_agent.journal.snapshot import write_snapshot
from host_agent.journal.store import Store
from host_agent.machine import HostMachine
from host_agent.state import HostConfig, SessionRecord

BATCH = 256
BATCHES = 400
#: A million events, and as many since the newest snapshot as there can be before the next one.
LONG_BATCHES = 4000
SNAPSHOT_EVERY = JournalOptions(directory=Path()).snapshot_every
ROUNDS = 5
VCPUS = 4
FOLDER = Path("build/bench-journal")


def rows(fraction: int = 1) -> Iterator[Row]:
    """Every figure about the journal, with one ``fraction``-th of the batches."""
    batches = max(4, BATCHES // fraction)
    machine, commands, replies = history(batches)
    bodies = [body for _, body in bodies_of(machine, commands, replies)]
    batch_bytes = len(bodies[-1])
    yield counted("bytes of a record, per event of a 256-event batch", "bytes", batch_bytes / BATCH, at_most=40)
    encode, decode, apply = _encoding(commands, replies, machine)
    yield paired("records packed, beside applying the same events", "events/s", encode, apply, at_least=2.0)
    yield paired("records unpacked, beside applying the same events", "events/s", decode, apply, at_least=2.0)
    commits, floor = _commits(bodies[5:])
    yield paired(
        "durable batches of 256 events, one a commit",
        "batches/s",
        commits,
        floor,
        at_least=0.5,
        note="floor: append + fdatasync of the same bytes, interleaved commit by commit.",
    )
    recovered, applied = _replay(bodies, commands)
    yield paired(
        "events recovered by replay",
        "events/s",
        recovered,
        applied,
        at_least=0.5,
        note="floor: the same commands applied by a machine that is told them, with nothing read and nothing compared.",
    )
    quarter, whole, replayed, events = _recovery(max(8, LONG_BATCHES // fraction))
    name = f"recovery of {events:,} events, the last {SNAPSHOT_EVERY:,} of them by replay"
    yield counted(name, "s (processor)", whole, at_most=5.0)
    yield counted("recovery of that history over recovery of a quarter of it", "ratio", whole / quarter, at_most=1.3)
    note = "what a start would cost if every snapshot were lost; the host's own policy keeps two."
    yield measured(
        "recovery of that history without any snapshot, all of it by replay", "s (processor)", replayed, note=note
    )


def _founded(do: Callable[[Command], Any]) -> tuple[list[str], SessionRecord]:
    """A VM with a few vCPUs, and a session over them."""
    config = HostConfig()
    names = [f"vms/a/vcpus/{index}" for index in range(VCPUS)]
    do(Boot(config=config))
    do(CreateVm(vm_id="a"))
    do(RequestPermission(vm="vms/a", feature=18, guest=True))
    for index in range(VCPUS):
        do(CreateVcpu(vm="vms/a", index=index))
    opened = do(OpenSession(client_name="bench", vcpus=tuple(names), lease_ns=config.max_lease_ns))
    return names, opened.session


def _batch(session: SessionRecord, seq: dict[str, int], names: list[str]) -> SubmitBatch:
    """What guests do when they do not grow, and that the outcomes of the batch before were received."""
    received = tuple(seq.items())
    events = tuple(_event(seq, names[nr % VCPUS], nr) for nr in range(BATCH))
    return SubmitBatch(session=session.name, epoch=session.epoch, events=events, received=received)


def history(batches: int) -> tuple[HostMachine, list[Command], list[object]]:
    """A machine, the commands it was told, and its replies."""
    machine = HostMachine(HostConfig())
    commands: list[Command] = []
    replies: list[object] = []

    def do(command: Command) -> object:
        commands.append(command)
        replies.append(machine.apply(command, 0))
        return replies[-1]

    names, session = _founded(do)
    seq = dict.fromkeys(names, 0)
    for _ in range(batches):
        do(_batch(session, seq, names))
    machine.take_effects()
    return machine, commands, replies


def _event(seq: dict[str, int], name: str, nr: int) -> GuestEvent:
    seq[name] += 1
    kinds = (Xsetbv(0, 7), Wrmsr(0x1C4, 0), Rdmsr(0x1C4), RegisterWrite(1, 0, bytes(16)))
    return GuestEvent(name, seq[name], kinds[nr // VCPUS % len(kinds)])


def bodies_of(machine: HostMachine, commands: list[Command], replies: list[object]) -> list[tuple[int, bytes]]:
    """Records whose outcomes are those of a replay; the revision of each is its number."""
    crc = 0
    bodies: list[tuple[int, bytes]] = []
    fresh = HostMachine(machine.state.config)
    for n, command in enumerate(commands, 1):
        reply = fresh.apply(command, 0)
        outcome = pack_outcome(command, reply, fresh.take_effects())
        body, crc = pack_record(crc, fresh.state.revision, 0, pack_command(command), outcome)
        bodies.append((n, body))
    assert len(replies) == len(bodies)
    return bodies


def _encoding(commands: list[Command], replies: list[object], machine: HostMachine) -> tuple[float, float, float]:
    """Events a second: packed into records, unpacked, and applied."""
    batches = [(c, r) for c, r in zip(commands, replies, strict=True) if isinstance(c, SubmitBatch)]
    packed = [pack_command(command) for command, _ in batches]
    seconds: tuple[list[float], list[float], list[float]] = ([], [], [])
    for _ in range(ROUNDS):
        start = time.process_time()
        for command, reply in batches:
            pack_record(0, 1, 1, pack_command(command), pack_outcome(command, reply, ()))
        seconds[0].append(time.process_time() - start)
        start = time.process_time()
        for raw in packed:
            unpack_command(raw)
        seconds[1].append(time.process_time() - start)
        seconds[2].append(_apply(machine.state.config, commands))
    events = len(batches) * BATCH
    encode, decode, apply = (events / median(each) for each in seconds)
    return encode, decode, apply


def _apply(config: HostConfig, commands: list[Command]) -> float:
    machine = HostMachine(config)
    start = time.process_time()
    for command in commands:
        machine.apply(command, 0)
    return time.process_time() - start


def _commits(bodies: list[bytes]) -> tuple[float, float]:
    """Commits a second, through the store and through a bare file, by turns."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    make_directory(FOLDER)
    ours = floor = 0.0
    fd = os.open(FOLDER / "floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        with Store(FOLDER, write=True) as store:
            for n, body in enumerate(bodies, 1):
                start = time.perf_counter()
                store.append([(n, body)], n, 0)
                middle = time.perf_counter()
                os.write(fd, body)
                os.fdatasync(fd)
                ours, floor = ours + middle - start, floor + time.perf_counter() - middle
    finally:
        os.close(fd)
        shutil.rmtree(FOLDER)
    return len(bodies) / ours, len(bodies) / floor


def _replay(bodies: list[bytes], commands: list[Command]) -> tuple[float, float]:
    """Events a second: recovered from records, and applied, by turns."""
    config = HostConfig()
    recovered: list[float] = []
    applied: list[float] = []
    for _ in range(ROUNDS):
        start = time.process_time()
        replay_records(Recovered(HostMachine(config), 0, 0), enumerate(bodies, 1))
        recovered.append(time.process_time() - start)
        applied.append(_apply(config, commands))
    events = (len(bodies) - VCPUS - 4) * BATCH
    return events / median(recovered), events / median(applied)


def _recovery(batches: int) -> tuple[float, float, float, int]:
    """Seconds to bring a host back: after a quarter of a history, after all of it, after all of it without a snapshot.

    And the events of all of it.
    """
    shutil.rmtree(FOLDER, ignore_errors=True)
    make_directory(FOLDER)
    quarter = batches // 4
    since = min(SNAPSHOT_EVERY // BATCH, quarter - 1)
    try:
        with Store(FOLDER, write=True) as store:
            first = _write_history(store, batches, snapshots=(quarter - since, batches - since))
            seconds = []
            for through in (first + quarter, None, None):
                start = time.process_time()
                recover(store, HostConfig(), through=through)
                seconds.append(time.process_time() - start)
                if len(seconds) == 2:
                    for _, path in snapshots_of(FOLDER):
                        path.unlink()
    finally:
        shutil.rmtree(FOLDER)
    return seconds[0], seconds[1], seconds[2], batches * BATCH


def _write_history(store: Store, batches: int, *, snapshots: tuple[int, ...]) -> int:
    """Apply and record so many batches, with a snapshot after some; returns how many records came before the first."""
    machine = HostMachine(HostConfig())
    crc = n = 0

    def record(command: Command) -> object:
        nonlocal crc, n
        reply = machine.apply(command, 0)
        outcome = pack_outcome(command, reply, machine.take_effects())
        body, crc = pack_record(crc, machine.state.revision, 0, pack_command(command), outcome)
        n += 1
        pending.append((n, body))
        return reply

    pending: list[tuple[int, bytes]] = []
    names, session = _founded(record)
    first = n
    seq = dict.fromkeys(names, 0)
    for batch in range(1, batches + 1):
        record(_batch(session, seq, names))
        if len(pending) >= 64 or batch in snapshots or batch == batches:
            store.append(pending, n, crc)
            pending.clear()
        if batch in snapshots:
            write_snapshot(FOLDER, machine.state, n, crc)
    return first
