"""When snapshots are made, and what is forgotten after each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from host_agent.journal.compaction import forget_records, forget_snapshots
from host_agent.journal.errors import JournalError
from host_agent.journal.journal import JournalOptions
from host_agent.journal.snapshot import snapshots, write_snapshot
from host_agent.journal.snapshot_process import SnapshotProcess
from host_agent.journal.store import Store
from host_agent.journal.writer import Writer
from host_agent.state import HostState

_log = logging.getLogger(__name__)


class SnapshotKeeper:
    """A snapshot every so many events, made beside the host, and one at its end. ``call`` calls back on the loop."""

    def __init__(self, options: JournalOptions, writer: Writer, call: Callable[..., None]) -> None:
        self._options = options
        self._writer = writer
        self._call = call
        self._events = 0
        self._process: SnapshotProcess | None = None

    def count(self, events: int) -> None:
        """So many more have come. What comes while a snapshot is made counts for the next one."""
        self._events += events
        if self._events >= self._options.snapshot_every and self._process is None:
            self._events = 0
            self._process = SnapshotProcess(self._options.directory, partial(self._call, self._made))

    def _made(self, error: str) -> None:
        self._process = None
        if error:
            _log.error("no snapshot was made, and nothing is forgotten: %s", error)
        else:
            through = forget_snapshots(self._options.directory) - self._options.history
            self._writer.run(partial(self._forget, through))

    def _forget(self, through: int, store: Store) -> None:
        """On the writer's thread: a portion, then whatever has queued up, then the next portion."""
        if forget_records(store, through):
            self._writer.run(partial(self._forget, through))

    def close(self) -> None:
        """Give up the snapshot that is being made."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def leave(self, store: Store, state: HostState, n: int, crc: int) -> None:
        """At the end: the next start has nothing to replay, whatever release it is of."""
        directory = self._options.directory
        if n in (0, *(number for number, _ in snapshots(directory))):
            return
        try:
            if store.tail() != (n, crc):
                return  # the disk was full, and the end was lost with it
            write_snapshot(directory, state, n, crc)
            through = forget_snapshots(directory) - self._options.history
            while forget_records(store, through):
                pass
        except (OSError, JournalError) as error:
            _log.error("no snapshot was left, the next start replays: %s", error)
