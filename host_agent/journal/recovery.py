"""From a directory back to the machine: the newest good snapshot, and every record after it carried out again.

Replay is proof, not hope: each record must be whole and chained to the one before, must have been made under the rules
of this release, and must lead to the outcome and the revision that it holds. Whatever does not is an error with the
record's number; nothing is skipped, cut off or guessed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from host_agent import log
from host_agent.commands import Boot, Command
from host_agent.errors import Refused
from host_agent.journal.command import BadCommandError, events_in, unpack_command
from host_agent.journal.errors import DamagedError, ReplayMismatchError
from host_agent.journal.outcome import outcome_text, pack_outcome
from host_agent.journal.record import RULES_VERSION, BadRecordError, Record, unpack_record
from host_agent.journal.snapshot import SnapshotError, load_snapshot, snapshots
from host_agent.journal.store import Store
from host_agent.machine import HostMachine
from host_agent.state import HostConfig

_log = logging.getLogger(__name__)

_RESTORE: Final = "restore a backup (fpstated journal restore BACKUP DIR)"
_REPAIR: Final = "restore a backup, or cut it off: fpstated journal verify DIR --truncate-after {last}"


#: Hears how far long work is: what is being done, the number of a record, and that of the last one.
Heard = Callable[[str, int, int], None]
#: Records between two words to it.
_EVERY: Final = 256


def unheard(_what: str, _n: int, _last: int) -> None:
    """Nobody wants to know."""


def told(bodies: Iterable[tuple[int, bytes]], what: str, last: int, heard: Heard) -> Iterator[tuple[int, bytes]]:
    """The same records, and a word now and then about how far they are."""
    for n, body in bodies:
        if n % _EVERY == 0 or n == last:
            heard(what, n, last)
        yield n, body


@dataclass(slots=True)
class Recovered:
    """A machine and the place in the journal where it stands: the last record's number and CRC.

    ``events`` is how many guest events and other commands came after the snapshot it was made from.
    """

    machine: HostMachine
    n: int
    crc: int
    events: int = 0


def recover(store: Store, config: HostConfig, *, through: int | None = None, heard: Heard = unheard) -> Recovered:
    """Bring the machine of a directory back; a new one of ``config`` where nothing was ever recorded.

    ``through`` stops after a record of the past; None goes to the end.

    Raises:
        DamagedError: a record, or the books, are not as they were written.
        ReplayMismatchError: a record is whole and led to something else.
    """
    start = _start(store, config, through)
    last = store.last() if through is None else through
    recovered = replay_records(start, told(store.bodies(start.n, through=through), "replay", last, heard))
    if through is None:
        check_tail(store, recovered.n, recovered.crc)
    return recovered


def _start(store: Store, config: HostConfig, through: int | None) -> Recovered:
    """The newest good snapshot, or nothing where the journal is whole. A bad snapshot is said, and passed over."""
    for n, path in snapshots(store.directory):
        if through is not None and n > through:
            continue
        try:
            found = load_snapshot(path)
        except (SnapshotError, OSError) as error:
            _log.error("%s: going back to the one before", error)
        else:
            return Recovered(found.machine, found.n, found.crc)
    forgotten, _ = store.base()
    if forgotten:
        text = f"records up to {forgotten} are forgotten, and there is no good snapshot to go on from: {_RESTORE}"
        raise DamagedError(forgotten + 1, text)
    return Recovered(HostMachine(config), 0, 0)


def replay_records(start: Recovered, bodies: Iterable[tuple[int, bytes]]) -> Recovered:
    """Carry records out on ``start``, which is used up, and return where that leads."""
    machine, n, crc, events = start.machine, start.n, start.crc, start.events
    for number, record in read_chain(bodies, n, crc):
        command = read_command(number, record)
        if n == 0 and isinstance(command, Boot):
            machine = HostMachine(command.config)
        carry_out(machine, number, record, command)
        n, crc, events = number, record.crc, events + events_in(record.command)
    return Recovered(machine, n, crc, events)


def read_chain(bodies: Iterable[tuple[int, bytes]], n: int, crc: int) -> Iterator[tuple[int, Record]]:
    """Yield the records after record ``n`` with its ``crc``, each whole and chained to the one before.

    Raises ``DamagedError`` at the first that is not.
    """
    for number, body in bodies:
        if number != n + 1:
            raise DamagedError(n + 1, f"record {n + 1} is missing: the next one is {number}; {_repair(n)}")
        record = read_record(number, body, crc)
        yield number, record
        n, crc = number, record.crc


def check_tail(store: Store, last: int, last_crc: int) -> None:
    """Compare the end with what the books say: a lost last record leaves no hole."""
    n, crc = store.tail()
    if n != last:
        least = min(n, last)
        raise DamagedError(least + 1, f"the journal ends with record {last}, and its books say {n}; {_repair(least)}")
    if crc != last_crc:
        raise DamagedError(n, f"record {n} is not the one in the journal's books; {_repair(max(0, n - 1))}")
    _check_acknowledged(store, last)


def _check_acknowledged(store: Store, last: int) -> None:
    """Compare the end with the mark: the books are lost together with the records they speak of."""
    if store.bad_mark:
        _log.error("%s: whether the journal's end is all there cannot be told", store.bad_mark)
    n, crc = store.acknowledged
    if n > last:
        text = f"record {n} was acknowledged, and the journal ends with record {last}: its end was damaged or is lost"
        raise DamagedError(last + 1, f"{text}; {_repair(last)}")
    if store.crc(n) not in (None, crc):
        raise DamagedError(n, f"record {n} is not the one that was acknowledged; {_repair(max(0, n - 1))}")


def read_record(n: int, body: bytes, previous_crc: int) -> Record:
    """Read record ``n``. Raises ``DamagedError``."""
    try:
        return unpack_record(body, previous_crc)
    except BadRecordError as error:
        raise DamagedError(n, f"record {n} is damaged: {error}; {_repair(n - 1)}") from error


def read_command(n: int, record: Record) -> Command:
    """Read the command of record ``n``. Raises ``DamagedError``."""
    try:
        return unpack_command(record.command)
    except BadCommandError as error:
        raise DamagedError(n, f"record {n} (revision {record.revision}): {error}; {_repair(n - 1)}") from error


def carry_out(machine: HostMachine, n: int, record: Record, command: Command) -> None:
    """Apply record ``n`` and compare what came of it. Raises ``ReplayMismatchError``."""
    if record.rules != RULES_VERSION:
        raise ReplayMismatchError(
            n,
            f"record {n} was made under rules {record.rules}, and this release has rules {RULES_VERSION}: start the "
            "release that wrote it once and stop it in peace, so that it leaves a snapshot (docs/storage.md, Upgrade)",
        )
    result: object
    try:
        result = machine.apply(command, record.now_ns)
    except Refused as refused:
        result = refused
    except Exception as bug:  # noqa: BLE001 -- what was a bug then must be the same bug now
        result = bug
    found = pack_outcome(command, result, machine.take_effects())
    if found != record.outcome or machine.state.revision != record.revision:
        text = (
            f"record {n}, {type(command).__name__}, led to something else than it holds (`fpstated journal verify` "
            f"shows what); nothing was changed; {_repair(n - 1)}"
        )
        raise ReplayMismatchError(n, text, _mismatch(machine, record, command, found))


def _mismatch(machine: HostMachine, record: Record, command: Command, found: bytes) -> str:
    return (
        f"  command:  {log.record_line(record.now_ns, command)}\n"
        f"  expected: revision {record.revision}: {outcome_text(record.outcome)}\n"
        f"  found:    revision {machine.state.revision}: {outcome_text(found)}"
    )


def _repair(last: int) -> str:
    return _REPAIR.format(last=last)
