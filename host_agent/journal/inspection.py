"""Looking into a state directory, whether its host runs or not: is it whole, and what is in it?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from host_agent import log
from host_agent.commands import Command
from host_agent.journal.directory import DirectoryLock
from host_agent.journal.errors import DamagedError, JournalError, ReplayMismatchError
from host_agent.journal.outcome import outcome_text
from host_agent.journal.recovery import Heard, check_tail, read_chain, read_command, recover, told, unheard
from host_agent.journal.snapshot import SnapshotError, load_snapshot, snapshots
from host_agent.journal.store import Store
from host_agent.state import HostConfig


@dataclass(slots=True)
class Report:
    """What ``verify`` found. ``problems`` is empty where all is well."""

    first: int = 0
    last: int = 0
    revision: int = 0
    snapshots: list[int] = field(default_factory=list)
    #: Of the machine that recovery leads to; empty where there was no replay.
    digest: str = ""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Entry:
    """A record for people and programs."""

    n: int
    revision: int
    now_ns: int
    rules: int
    command: Command
    outcome: str


def verify(directory: Path, *, replay: bool = True, heard: Heard = unheard) -> Report:
    """Check the file, the chain of the records, each snapshot, and that the end can be reached."""
    report = Report()
    try:
        with Store(directory, write=False) as store, store.reading():
            _verify(store, report, heard, replay=replay)
    except ReplayMismatchError as error:
        report.problems.append(f"{error}\n{error.details}")
    except JournalError as error:
        report.problems.append(str(error))
    return report


def _verify(store: Store, report: Report, heard: Heard, *, replay: bool) -> None:
    complaints = store.integrity()
    if complaints != "ok":
        report.problems.append(f"{store.path}: {complaints}")
    crcs = dict([store.base()])
    for n, record in read_chain(told(store.bodies(0), "check", store.last(), heard), *store.base()):
        report.first = report.first or n
        report.last, report.revision = n, record.revision
        crcs[n] = record.crc
    last = report.last or store.base()[0]
    check_tail(store, last, crcs[last])
    if store.bad_mark:
        report.problems.append(f"{store.bad_mark}; the next commit writes it anew")
    for n, path in snapshots(store.directory):
        report.snapshots.append(n)
        try:
            if n in crcs and load_snapshot(path).crc != crcs[n]:
                report.problems.append(f"{path} was made after another record {n}")
        except (SnapshotError, OSError) as error:
            report.problems.append(str(error))
    if replay:
        report.digest = recover(store, HostConfig(), heard=heard).machine.digest()


def truncate(directory: Path, after: int) -> int:
    """Cut off every record after a number, and the snapshots of them; returns how many records it were.

    What is cut off was acknowledged and is given up. Every record that stays is checked first. Raises ``JournalError``,
    after which nothing has changed.
    """
    lock = DirectoryLock(directory)
    try:
        with Store(directory, write=True) as store:
            last, crc = store.base()
            if not last <= after <= store.last():
                raise DamagedError(after, f"there is no record {after}: the journal has {last + 1} to {store.last()}")
            for number, record in read_chain(store.bodies(0, through=after), last, crc):
                last, crc = number, record.crc
            if last != after:
                raise DamagedError(last + 1, f"record {last + 1} is missing, so what comes after it cannot stay")
            recover(store, HostConfig(), through=after)
            for number, path in snapshots(directory):
                if number > after:
                    path.unlink()
            return store.truncate(after, crc)
    finally:
        lock.release()


def entries(directory: Path, *, after: int = 0, through: int | None = None) -> Iterator[Entry]:
    """The records after a number, in order. Raises ``JournalError`` where one is damaged."""
    with Store(directory, write=False) as store, store.reading():
        for n, record in read_chain(store.bodies(0, through=through), *store.base()):
            if n > after:
                command = read_command(n, record)
                yield Entry(n, record.revision, record.now_ns, record.rules, command, outcome_text(record.outcome))


def entry_json(entry: Entry) -> dict[str, object]:
    """An entry as JSON has it; the command as in a command log."""
    return {
        "n": entry.n,
        "revision": entry.revision,
        "at": entry.now_ns,
        "rules": entry.rules,
        "command": log.encode(entry.command),
        "outcome": entry.outcome,
    }
