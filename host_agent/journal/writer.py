"""The one thread that commits: whatever has queued up while the last commit ran goes into the next one.

Nothing waits on purpose. A lone record is committed at once; under load a commit takes what came meanwhile, so its cost
is shared by as many records as arrive in its time.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from host_agent.durations import Durations
from host_agent.journal.errors import JournalError, StorageFailedError, StorageFullError
from host_agent.journal.journal import nothing
from host_agent.journal.store import Store

#: Pages (4 KiB) in the WAL before they are brought into the file, between two commits.
CHECKPOINT_PAGES: Final = 4096
#: How much room there has to be before a full disk counts as having room again, in bytes.
ROOM_BYTES: Final = 256 * 1024

Job = Callable[[Store], None]


@dataclass(slots=True)
class Listener:
    """What the writer tells, on its own thread: where it has come to, no room, room again, and its end."""

    committed: Callable[[int], None]
    full: Callable[[StorageFullError], None]
    room: Callable[[], None]
    failed: Callable[[JournalError], None]


@dataclass(slots=True)
class _Queue:
    """What waits for the next turn."""

    records: list[tuple[int, bytes]] = field(default_factory=list)
    crc: int = 0
    jobs: list[Job] = field(default_factory=list)
    closing: bool = False


@dataclass(slots=True)
class Commits:
    """What was committed since the start. The writer's thread counts; whoever reads may see half of the last commit."""

    records: int = 0
    bytes: int = 0
    durations: Durations = field(default_factory=Durations)


class _Room(enum.Enum):
    """Whether the disk has room, as far as the writer knows."""

    ENOUGH = enum.auto()
    #: A commit has found none; the owner is told and has not answered with ``resume`` yet.
    NONE = enum.auto()
    #: The owner has gone back to what is durable; the disk is tried from time to time.
    AWAITED = enum.auto()


class Writer:
    """Owns the store from ``start`` to ``close``. ``append``, ``run`` and ``resume`` never block."""

    def __init__(
        self,
        store: Store,
        listener: Listener,
        *,
        probe_interval_s: float = 1.0,
        before_commit: Callable[[], None] = nothing,
    ) -> None:
        self._store = store
        self._before_commit = before_commit
        self._listener = listener
        self._probe_interval_s = probe_interval_s
        self.commits = Commits()
        self._queue = _Queue()
        self._changed = threading.Condition()
        self._room = _Room.ENOUGH
        self._checkpoint_at = CHECKPOINT_PAGES
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """Begin to commit."""
        self._thread.start()

    def append(self, n: int, body: bytes, crc: int) -> None:
        """Queue a record, whose number follows the one before."""
        with self._changed:
            self._queue.records.append((n, body))
            self._queue.crc = crc
            self._changed.notify()

    def run(self, job: Job) -> None:
        """Let ``job`` use the store between two commits. For want of room it may be left out."""
        with self._changed:
            self._queue.jobs.append(job)
            self._changed.notify()

    def resume(self) -> None:
        """After ``Listener.full``: the owner has gone back to what is durable. What is queued is dropped."""
        with self._changed:
            self._queue.records = []
            self._room = _Room.AWAITED
            self._changed.notify()

    def close(self) -> None:
        """Commit what is queued and end the thread; where the disk is full, what is queued is lost."""
        with self._changed:
            self._queue.closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (taken := self._take()) is not None:
                self._look_for_room()
                self._commit(taken)
                self._work(taken.jobs)
        except JournalError as error:
            self._listener.failed(error)
        except Exception as error:  # noqa: BLE001 -- whatever it is: nothing is acknowledged any more, and it is said
            self._listener.failed(StorageFailedError(f"a bug of the journal: {type(error).__name__}"))

    def _take(self) -> _Queue | None:
        """Everything that is queued; None at the end. While there is no room: nothing, after a pause."""
        with self._changed:
            if self._room is not _Room.ENOUGH:
                self._changed.wait_for(lambda: self._queue.closing, timeout=self._probe_interval_s)
                return None if self._queue.closing else _Queue()
            self._changed.wait_for(lambda: self._queue.records or self._queue.jobs or self._queue.closing)
            if self._queue.closing and not self._queue.records:
                return None
            taken, self._queue = self._queue, _Queue(closing=self._queue.closing)
            return taken

    def _look_for_room(self) -> None:
        if self._room is not _Room.AWAITED:
            return
        with suppress(StorageFullError):
            self._store.checkpoint()  # a log that is in the file is written from its beginning again
        with suppress(StorageFullError):
            self._store.probe(ROOM_BYTES)
            self._room = _Room.ENOUGH
            self._listener.room()

    def _commit(self, taken: _Queue) -> None:
        if not taken.records:
            return
        last = taken.records[-1][0]
        self._before_commit()
        begin_s = time.perf_counter()
        try:
            self._store.append(taken.records, last, taken.crc)
        except StorageFullError as error:
            self._room = _Room.NONE
            self._listener.full(error)
            return
        self.commits.durations.add(time.perf_counter() - begin_s)
        self.commits.records += len(taken.records)
        self.commits.bytes += sum(len(body) for _, body in taken.records)
        self._listener.committed(last)
        self._checkpoint()

    def _checkpoint(self) -> None:
        """Now and then. For want of room the WAL stays as it is; the next commit tells whether that is bad.

        While somebody reads it the WAL cannot be begun anew, and there is no use in trying at every commit.
        """
        pages = self._store.wal_pages
        if pages < CHECKPOINT_PAGES:
            self._checkpoint_at = CHECKPOINT_PAGES
        elif pages >= self._checkpoint_at:
            self._checkpoint_at = pages + CHECKPOINT_PAGES // 4
            with suppress(StorageFullError):
                self._store.checkpoint()

    def _work(self, jobs: list[Job]) -> None:
        for job in jobs:
            with suppress(StorageFullError):
                job(self._store)
