"""The journal of a state directory, on the agent's loop; the commits happen on the writer's thread.

append      pack the record, queue it
settled     wait for the commit of all that is queued
committed   <- writer: answer who waits
full        <- writer: back to what is durable; what was applied beyond it has not happened
failed      <- writer: the agent has to stop
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from host_agent.commands import Command, SubmitBatch
from host_agent.journal.command import pack_command
from host_agent.journal.compaction import forget_parts
from host_agent.journal.directory import DirectoryLock, make_directory
from host_agent.journal.errors import JournalError, StorageFailedError, StorageFullError
from host_agent.journal.journal import JournalOptions
from host_agent.journal.keeper import SnapshotKeeper
from host_agent.journal.outcome import pack_outcome
from host_agent.journal.record import pack_record
from host_agent.journal.recovery import recover
from host_agent.journal.store import Store
from host_agent.journal.writer import Commits, Listener, Writer
from host_agent.machine import HostMachine
from host_agent.state import HostConfig, HostState

_log = logging.getLogger(__name__)

#: Records that may wait to be committed before those who need no answer have to wait as well.
BACKLOG_MAX: Final = 4096


class DurableJournal:
    """The journal of a directory. Its methods are called on the agent's loop, ``start`` first.

    ``machine`` is what was recovered. ``on_rolled_back`` is called with the machine that takes the place of the former
    one, ``on_room`` when there is room again, ``on_failed`` when the agent has to stop.
    """

    def __init__(self, options: JournalOptions, config: HostConfig) -> None:
        """Lock the directory, open it, and recover the machine in it. Raises ``JournalError``, ``OSError``."""
        make_directory(options.directory)
        self.generation = 0
        self.failure: JournalError | None = None
        self.full: StorageFullError | None = None
        self.on_rolled_back: Callable[[HostMachine], None] = lambda _machine: None
        self.on_room: Callable[[], None] = lambda: None
        self.on_failed: Callable[[JournalError], None] = lambda _error: None
        self._options = options
        self._config = config
        self._lock = DirectoryLock(options.directory)
        try:
            forget_parts(options.directory)
            self._store = Store(options.directory, write=True, vfs=options.vfs)
        except BaseException:
            self._lock.release()
            raise
        try:
            recovered = recover(self._store, config)
            with suppress(StorageFullError):
                # After a sync that failed the log may read as if it were on the disk, and no later sync writes it:
                # what was read is written anew.
                self._store.checkpoint()
        except BaseException:
            self._store.close()
            self._lock.release()
            raise
        self.machine = recovered.machine
        _log.info("recovered: record %d, revision %d", recovered.n, self.machine.state.revision)
        if _log.isEnabledFor(logging.DEBUG):  # it takes a while, where there is much
            _log.debug("recovered: record %d, digest %s", recovered.n, self.machine.digest())
        fresh = recovered.n == 0 or self._store.branched()
        #: What this history goes by: the configuration's id where it begins here, else the one it has had.
        self.boot_id = config.boot_id if fresh else recovered.machine.state.config.boot_id
        self._applied = self._durable = recovered.n
        self._crc = recovered.crc
        self._closed = False
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._short = asyncio.Event()
        self._short.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        listener = Listener(
            committed=lambda n: self._call(self._committed, n),
            full=lambda error: self._call(self._roll_back, error),
            room=lambda: self._call(self._room_again),
            failed=lambda error: self._call(self._fail, error),
        )
        self._writer = Writer(
            self._store, listener, probe_interval_s=options.probe_interval_s, before_commit=options.before_commit
        )
        self._keeper = SnapshotKeeper(options, self._writer, self._call)
        self._keeper.count(recovered.events)

    def start(self) -> None:
        """Begin to commit, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._writer.start()

    @property
    def durable(self) -> int:
        """The number of the last record that is durable."""
        return self._durable

    @property
    def applied(self) -> int:
        """The number of the last record that is queued or durable."""
        return self._applied

    @property
    def backlog(self) -> int:
        """How many records are applied and not durable."""
        return self._applied - self._durable

    @property
    def commits(self) -> Commits:
        """What this process has committed."""
        return self._writer.commits

    # -- what the agent calls ------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Refuse while the disk is full, and for good after a failure."""
        if self.failure is not None:
            raise StorageFailedError(str(self.failure))
        if self.full is not None:
            raise StorageFullError(str(self.full))

    def append(self, state: HostState, command: Command, result: object) -> None:
        """Queue a record. What could not be written down is a bug, and the agent stops: its state is ahead of it."""
        try:
            outcome = pack_outcome(command, result, state.effects)
            body, self._crc = pack_record(self._crc, state.revision, state.now_ns, pack_command(command), outcome)
        except Exception as bug:
            # Its text may hold what the command held, register content included.
            self._fail(StorageFailedError(f"a bug of the journal: {type(bug).__name__} in {type(command).__name__}"))
            raise
        self._applied += 1
        self._keeper.count(len(command.events) if isinstance(command, SubmitBatch) else 1)
        if self.backlog > BACKLOG_MAX:
            self._short.clear()
        self._writer.append(self._applied, body, self._crc)

    async def settled(self, generation: int) -> None:
        """Wait for the commit of what is applied now."""
        if self.failure is not None:
            raise StorageFailedError(str(self.failure))
        if generation != self.generation:
            raise StorageFullError("the disk was full, and what was under way has not happened")
        if self._applied == self._durable:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._applied, waiter))
        await waiter

    async def room(self) -> None:
        """Wait until the queue is short. After a failure there is always room: the next command hears of it."""
        await self._short.wait()

    def close(self, state: HostState) -> None:
        """Commit what is queued, leave a snapshot, close the file, give the directory up. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._keeper.close()
        self._writer.close()
        if self.failure is None:
            self._keeper.leave(self._store, state, self._applied, self._crc)
            self._store.close_in_peace()
        else:
            self._store.close()
        self._lock.release()

    # -- what the writer says, on the loop -----------------------------------------------------------------------------

    def _call(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            _log.debug("the loop has ended before the journal")

    def _committed(self, n: int) -> None:
        self._durable = n
        if self._applied - n <= BACKLOG_MAX // 2:
            self._short.set()
        while self._waiting and self._waiting[0][0] <= n:
            _, waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _roll_back(self, error: StorageFullError) -> None:
        """Go back to what is durable: what was applied beyond it has not happened, and nobody has heard of it."""
        _log.error("%s; going back to record %d, and taking no new work until there is room", error, self._durable)
        self.full = error
        self.generation += 1
        try:
            with Store(self._options.directory, write=False, vfs=self._options.vfs) as store:
                recovered = recover(store, self._config)
        except JournalError as failure:
            self._fail(failure)
            return
        self._applied = self._durable = recovered.n
        self._crc = recovered.crc
        self._give_up(error)
        self.on_rolled_back(recovered.machine)
        self._writer.resume()

    def _room_again(self) -> None:
        _log.warning("there is room for the journal again")
        self.full = None
        self.on_room()

    def _fail(self, error: JournalError) -> None:
        if self.failure is not None:
            return
        _log.critical("%s; nothing after record %d was acknowledged", error, self._durable)
        self.failure = error
        self._give_up(error)
        self.on_failed(error)

    def _give_up(self, error: JournalError) -> None:
        self._short.set()
        while self._waiting:
            _, waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error)
