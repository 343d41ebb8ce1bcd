"""How a host goes away: health NOT_SERVING, DRAINING on the streams, the grace, the end of the streams.

The order matters: whoever asks for health first is sent elsewhere before anything is taken from those who are here.
"""

from __future__ import annotations

import asyncio
import enum
from contextlib import suppress
from typing import Final

from grpc_health.v1 import health

from host_agent.commands import DrainHost
from host_agent.journal.errors import StorageFullError
from host_agent.service.agent import HostAgent, host_gone
from host_agent.state import NS_PER_S

#: How long a stream that was ended has to write its last message.
_LAST_WORD_S: Final = 1.0


class DrainState(enum.Enum):
    """Whether the host is going away."""

    SERVING = "serving"
    DRAINING = "draining"
    DRAINED = "drained"


class Drain:
    """The one drain of a process's life. ``begin`` may be called again; it shortens the grace alone."""

    def __init__(self, agent: HostAgent, health_servicer: health.aio.HealthServicer) -> None:
        self._agent = agent
        self._health = health_servicer
        self._grace = asyncio.timeout(None)
        self._task: asyncio.Task[None] | None = None
        self.state = DrainState.SERVING

    async def begin(self, grace_s: float, *, resume_target: str = "", request_id: str = "") -> None:
        """Stop taking anything new, tell everybody, and end what is left after ``grace_s`` seconds. Returns at once."""
        command = DrainHost(grace_ns=round(grace_s * NS_PER_S), resume_target=resume_target, request_id=request_id)
        if self._agent.answered(request_id):
            self._agent.submit(command)  # its first answer stands; of another request it is refused
            return
        deadline_s = asyncio.get_running_loop().time() + grace_s
        if self.state is not DrainState.SERVING:
            self._submit(command)
            self._shorten(deadline_s)
            return
        self.state = DrainState.DRAINING
        self._grace = asyncio.timeout_at(deadline_s)
        await self._health.enter_graceful_shutdown()
        self._submit(command)
        self._agent.attachments.drain(grace_s, resume_target)
        self._task = asyncio.create_task(self._end_streams(), name="drain")

    def _submit(self, command: DrainHost) -> None:
        with suppress(StorageFullError):  # a host that takes nothing new at all can go away nonetheless
            self._agent.submit(command)

    def _shorten(self, deadline_s: float) -> None:
        now_s = self._grace.when()
        if self.state is DrainState.DRAINING and now_s is not None and deadline_s < now_s and not self._grace.expired():
            self._grace.reschedule(deadline_s)

    async def done(self) -> None:
        """Wait until no stream is left, or none that its client still reads, or until the server stops at once."""
        if self._task is not None:
            await asyncio.wait({self._task})

    def cancel(self) -> None:
        """The server is stopping at once."""
        if self._task is not None:
            self._task.cancel()

    async def _end_streams(self) -> None:
        attachments, waits = self._agent.attachments, self._agent.outcomes
        watchers, history = self._agent.exit_watchers, self._agent.history
        with suppress(TimeoutError):
            async with self._grace:
                await attachments.empty.wait()
                await waits.empty.wait()
        attachments.finish(host_gone())
        waits.finish(host_gone())
        watchers.finish(host_gone())
        history.finish(host_gone())
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD_S):
                await attachments.empty.wait()
                await watchers.empty.wait()
                await history.empty.wait()
        if attachments.empty.is_set() and watchers.empty.is_set() and history.empty.is_set():
            self.state = DrainState.DRAINED
