"""One way of one connection: bytes go in as they are read, and come out as the trouble of the way has it.

Without trouble they are written where they are read, without a task or a queue in between.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Protocol

from fault_lab.live.proxy.trouble import CLEAR
from fault_lab.live.proxy.way import Way

_NS: Final = 1_000_000_000
#: So much may wait in a queue before no more is read.
_QUEUED_BYTES_MAX: Final = 1 << 20


class Ends(Protocol):
    """What a pipe lies between: where it reads, and where it writes."""

    def pause(self, reason: str, *, paused: bool) -> None:
        """Read no more, or read again, for this reason."""

    def write(self, data: bytes) -> None:
        """Write at the far end."""

    def finish(self) -> None:
        """Tell the far end that no more comes."""

    def lose(self) -> None:
        """End the connection at once, at both ends."""


class Pipe:
    """The bytes of one way that are not yet written."""

    def __init__(self, way: Way, ends: Ends) -> None:
        self._way = way
        self._ends = ends
        self._queue: deque[tuple[int, bytes]] = deque()
        self._queued_bytes = 0
        self._last_due_ns = 0
        self._ended = False
        self._lost = False
        self._task: asyncio.Task[None] | None = None
        self._flows, self._writable, self._clear = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._writable.set()
        way.pipes.add(self)
        self.changed()

    def push(self, data: bytes) -> None:
        """Bytes were read, and go on."""
        if self._way.trouble.swallowing:
            self._lost = True
            self._way.swallowed_bytes += len(data)
        elif self._task is None and self._way.trouble is CLEAR:
            self._ends.write(data)
        else:
            self._queue.append((self._due_ns(), data))
            self._queued_bytes += len(data)
            self._ends.pause("queue", paused=self._queued_bytes > _QUEUED_BYTES_MAX)
            self._run()

    def end(self) -> None:
        """No more will be read."""
        self._ended = True
        self._run()

    def writable(self, *, yes: bool) -> None:
        """The far end's buffer has room, or is full: then nothing more is read, and nothing of the queue written."""
        self._ends.pause("far end", paused=not yes)
        (self._writable.set if yes else self._writable.clear)()

    def changed(self) -> None:
        """The way's trouble is another."""
        trouble = self._way.trouble
        self._ends.pause("stall", paused=trouble.stalled)
        (self._flows.clear if trouble.stalled else self._flows.set)()
        (self._clear.set if trouble is CLEAR else self._clear.clear)()
        if self._lost and not trouble.swallowing:
            self._ends.lose()

    def close(self) -> asyncio.Task[None] | None:
        """Throw away what waits; returns the task that is ending, if there is one."""
        self._way.pipes.discard(self)
        if self._task is not None:
            self._task.cancel()
        return self._task

    # -- with trouble --------------------------------------------------------------------------------------------------

    def _due_ns(self) -> int:
        trouble = self._way.trouble
        extra_ns = trouble.delay_ns + (self._way.draw("jitter", high=trouble.jitter_ns) if trouble.jitter_ns else 0)
        self._last_due_ns = max(self._last_due_ns, _now_ns() + extra_ns)
        return self._last_due_ns

    def _run(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        while self._queue:
            due_ns, data = self._queue.popleft()
            await self._until_clear(due_ns - _now_ns())
            for piece in self._pieces(data):
                await self._flows.wait()
                await self._writable.wait()
                self._ends.write(piece)
                await self._paced(len(piece))
            self._queued_bytes -= len(data)
            self._ends.pause("queue", paused=self._queued_bytes > _QUEUED_BYTES_MAX)
        if self._ended:
            await self._until_clear(self._way.trouble.close_delay_ns)
            await self._flows.wait()
            self._ends.finish()
        self._task = None

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        """Cut as the trouble of the moment has it; a limit needs pieces too, or a large chunk would go at once."""
        at = 0
        while at < len(data):
            trouble = self._way.trouble
            size = trouble.slice_bytes or len(data)
            if trouble.bytes_per_s:
                size = min(size, max(1, trouble.bytes_per_s // 50))
            yield data[at : at + size]
            at += size

    async def _paced(self, size: int) -> None:
        trouble = self._way.trouble
        pace_ns = size * _NS // trouble.bytes_per_s if trouble.bytes_per_s else 0
        await self._until_clear(max(pace_ns, trouble.slice_gap_ns))

    async def _until_clear(self, ns: int) -> None:
        """Wait so long, or until the way carries again."""
        if ns > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._clear.wait(), ns / _NS)


def _now_ns() -> int:
    return round(asyncio.get_running_loop().time() * _NS)
