"""Making a snapshot beside a running host: a process of its own that replays what the host has committed.

    python -m host_agent.journal.snapshotter DIR

The host's loop is not held up, whatever the size of its state: the snapshot is made from the newest one and the records
since. So every snapshot is a proof as well that the journal replays, with every outcome compared. It prints the number
of the record the snapshot is of.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from host_agent.journal.errors import JournalError
from host_agent.journal.recovery import recover
from host_agent.journal.snapshot import write_snapshot
from host_agent.journal.store import Store
from host_agent.state import HostConfig

#: The host comes first.
_NICE = 10


def make_snapshot(directory: Path) -> int:
    """Replay what is committed and write the snapshot of where that leads; returns the record's number."""
    with Store(directory, write=False) as store, store.reading():
        recovered = recover(store, HostConfig())
    write_snapshot(directory, recovered.machine.state, recovered.n, recovered.crc)
    return recovered.n


def main(directory: str) -> int:
    """The command. Status 0, or 1 with the reason on standard error."""
    with suppress(OSError):
        os.nice(_NICE)
    try:
        sys.stdout.write(f"{make_snapshot(Path(directory))}\n")
    except (JournalError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
