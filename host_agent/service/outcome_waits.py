"""Who waits for the final outcome of an event: the calls that block, by vCPU and number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from host_agent.events import Outcome


class OutcomeWaits:
    """Futures by (vCPU, number). Everything here happens on the agent's loop."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int], list[tuple[str, asyncio.Future[Outcome]]]] = {}
        #: Set while nobody waits.
        self.empty = asyncio.Event()
        self.empty.set()

    def wait(self, session: str, vcpu: str, seq: int) -> asyncio.Future[Outcome]:
        """Return a future of the final outcome of an event that is pending now.

        Registered before this returns, so nothing is missed. A caller that no longer wants it cancels it.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((vcpu, seq), []).append((session, future))
        self.empty.clear()
        future.add_done_callback(lambda _done: self._forget((vcpu, seq), future))
        return future

    def deliver(self, outcome: Outcome) -> None:
        """Answer whoever waits for this event, if the outcome is final."""
        if not outcome.final:
            return
        for _session, future in list(self._waiting.get((outcome.vcpu, outcome.seq), ())):
            if not future.done():
                future.set_result(outcome)

    def sessions(self) -> set[str]:
        """The sessions that wait for something."""
        return {session for waiting in self._waiting.values() for session, _future in waiting}

    def session_ended(self, session: str, error: Exception) -> None:
        """Fail what this session's calls wait for."""
        for waiting in list(self._waiting.values()):
            for owner, future in list(waiting):
                if owner == session and not future.done():
                    future.set_exception(error)

    def taken_over(self, session: str, vcpus: Collection[str], error: Callable[[str, str], Exception]) -> None:
        """Fail what older sessions wait for on vCPUs that ``session`` has now: the outcome is its agent's.

        ``error`` makes what a call hears, of its session and its vCPU.
        """
        for (vcpu, _seq), waiting in list(self._waiting.items()):
            for owner, future in list(waiting):
                if vcpu in vcpus and owner != session and not future.done():
                    future.set_exception(error(owner, vcpu))

    def finish(self, error: Exception) -> None:
        """Fail everything that anybody waits for."""
        for session in self.sessions():
            self.session_ended(session, error)

    def _forget(self, key: tuple[str, int], future: asyncio.Future[Outcome]) -> None:
        left = [each for each in self._waiting.get(key, ()) if each[1] is not future]
        if left:
            self._waiting[key] = left
        else:
            self._waiting.pop(key, None)
        if not self._waiting:
            self.empty.set()
