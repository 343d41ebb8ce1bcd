"""The watchers of exits: each has a bounded queue, and one that does not read is given up, not waited for."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from fpstate.v1 import exit_pb2

from host_agent.service.errors import Failure
from host_agent.service.limits import WATCH_QUEUE_MAX


@dataclass(frozen=True, slots=True)
class ExitNews:
    """An exit as it was when it changed, and the host's revision then."""

    vm: str
    exit: exit_pb2.Exit
    revision: int


class ExitWatcher:
    """One watcher's queue. ``vm`` narrows it to one VM; empty for all."""

    def __init__(self, vm: str, queue_max: int = WATCH_QUEUE_MAX) -> None:
        self.vm = vm
        self._queue: deque[ExitNews] = deque()
        self._queue_max = queue_max
        self._wake = asyncio.Event()
        self._failure: Failure | None = None
        self._retired = False

    def push(self, news: ExitNews) -> None:
        """Take news. A watcher too far behind is refused the rest: it lists again, and then knows everything."""
        if self.vm not in ("", news.vm) or self._failure is not None:
            return
        if len(self._queue) >= self._queue_max:
            text = f"the watcher is {self._queue_max} changes behind: list again, then watch from there"
            self.finish(Failure.because("LIMIT_REACHED", text, limit="exit_watch_queue", maximum=self._queue_max))
            return
        self._queue.append(news)
        self._wake.set()

    def finish(self, failure: Failure) -> None:
        """End the stream with ``failure``; what is still queued is dropped, as the watcher has to list again anyway."""
        self._failure = failure
        self._queue.clear()
        self._wake.set()

    def retire(self) -> None:
        """End the stream well, once everything that is queued was read. Its client watches on from there."""
        self._retired = True
        self._wake.set()

    @property
    def over(self) -> bool:
        """Whether it was retired, and everything was read."""
        return self._retired and not self._queue and self._failure is None

    async def next(self, timeout_s: float) -> ExitNews | None:
        """Return the next news, or None if there is none for ``timeout_s`` seconds, or will be none any more.

        Raises ``Failure`` where the stream was ended so.
        """
        if not self._queue and self._failure is None and not self._retired:
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), timeout_s)
            except TimeoutError:
                return None
        if self._failure is not None:
            raise self._failure
        return self._queue.popleft() if self._queue else None


class ExitWatchers:
    """All of them."""

    def __init__(self) -> None:
        self._watchers: dict[ExitWatcher, None] = {}
        #: Set while nobody watches.
        self.empty = asyncio.Event()
        self.empty.set()

    def __len__(self) -> int:
        return len(self._watchers)

    def add(self, watcher: ExitWatcher) -> None:
        """From here on the watcher gets every change."""
        self._watchers[watcher] = None
        self.empty.clear()

    def remove(self, watcher: ExitWatcher) -> None:
        """The watcher has gone."""
        self._watchers.pop(watcher, None)
        if not self._watchers:
            self.empty.set()

    def deliver(self, news: ExitNews) -> None:
        """Tell everybody whom it concerns."""
        for watcher in self._watchers:
            watcher.push(news)

    def finish(self, failure: Failure) -> None:
        """End every watcher's stream."""
        for watcher in self._watchers:
            watcher.finish(failure)
