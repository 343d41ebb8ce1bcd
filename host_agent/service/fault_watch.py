"""The watchers of faults: a listener of the agent that hands each change on, and gives up who does not read."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from fpstate.fault.v1 import fault_pb2

from fault_lab.injection.hit import Hit
from fault_lab.wire.action import action_to_proto
from host_agent.commands import Command
from host_agent.effects import Effect, FaultChanged
from host_agent.journal.errors import StorageFullError
from host_agent.service.errors import Failure, failure_of
from host_agent.service.limits import WATCH_QUEUE_MAX
from host_agent.service.translate.fault import fault_to_proto, hit_to_proto
from host_agent.service.translate.fields import header
from host_agent.state import HostState

_KINDS: Final = {
    kind: fault_pb2.FaultChangeKind.Value(f"FAULT_CHANGE_KIND_{kind}")
    for kind in ("ARMED", "FIRED", "DISARMED", "EXPIRED")
}


class FaultWatcher:
    """One watcher's queue. ``owner`` narrows it to the faults of one owner; empty for all."""

    def __init__(self, owner: str, queue_max: int = WATCH_QUEUE_MAX) -> None:
        self.owner = owner
        self._queue: deque[fault_pb2.WatchFaultsResponse] = deque()
        self._queue_max = queue_max
        self._wake = asyncio.Event()
        self._failure: Failure | None = None
        self._retired = False

    def push(self, news: fault_pb2.WatchFaultsResponse) -> None:
        """Take news; a watcher too far behind is refused the rest, and begins again with what is armed."""
        if self.owner not in ("", news.fault.scope.owner) or self._failure is not None:
            return
        if len(self._queue) >= self._queue_max:
            text = f"the watcher is {self._queue_max} changes behind: watch again"
            self.finish(Failure.because("LIMIT_REACHED", text, limit="fault_watch_queue", maximum=self._queue_max))
            return
        self._queue.append(news)
        self._wake.set()

    def finish(self, failure: Failure) -> None:
        """End the stream with ``failure``, and without what is still queued."""
        self._failure = failure
        self._queue.clear()
        self._wake.set()

    def retire(self) -> None:
        """End the stream well, with what is still queued."""
        self._retired = True
        self._wake.set()

    async def next(self) -> fault_pb2.WatchFaultsResponse | None:
        """Return the next news; None where it has retired and there is none. Raises ``Failure`` at another end."""
        while not self._queue and self._failure is None and not self._retired:
            self._wake.clear()
            await self._wake.wait()
        if self._failure is not None:
            raise self._failure
        return self._queue.popleft() if self._queue else None


class FaultWatchers:
    """All of them."""

    def __init__(self, state: HostState) -> None:
        self._state = state
        self._watchers: dict[FaultWatcher, None] = {}

    def add(self, watcher: FaultWatcher) -> None:
        """From here on the watcher gets every change; first, what is armed already."""
        for fault in self._state.faults.owned(watcher.owner):
            watcher.push(change(self._state, FaultChanged("ARMED", fault)))
        self._watchers[watcher] = None

    def remove(self, watcher: FaultWatcher) -> None:
        """The watcher has gone."""
        self._watchers.pop(watcher, None)

    def heard(self, _command: Command, effects: list[Effect]) -> None:
        """Tell everybody whom a change concerns."""
        if not self._watchers:
            return
        for effect in effects:
            if isinstance(effect, FaultChanged):
                for watcher in self._watchers:
                    watcher.push(change(self._state, effect))

    def rolled_back(self) -> None:
        """What was heard has not happened."""
        failure = failure_of(StorageFullError("the disk is full"))
        assert failure is not None
        self.finish(failure)

    def finish(self, failure: Failure) -> None:
        """End every watcher's stream."""
        for watcher in self._watchers:
            watcher.finish(failure)


def change(state: HostState, effect: FaultChanged) -> fault_pb2.WatchFaultsResponse:
    """A change as the stream has it, with the fault's counts now."""
    fault, hit = effect.fault, effect.hit
    made = fault_pb2.WatchFaultsResponse(header=header(state), kind=_KINDS[effect.kind], fault=fault_to_proto(fault))
    if hit is not None:
        made.hit_scope.CopyFrom(hit_to_proto(hit, fault.owner))
        made.hit = _number(state, hit)
        made.action.CopyFrom(action_to_proto(fault.drawn_action(hit)))
    return made


def _number(state: HostState, hit: Hit) -> int:
    """Which of its entity's hits it is; who counts all of them has a fault there that never fires."""
    there = (fault for fault in state.faults.armed.values() if fault.point == hit.point)
    return max((fault.entity_hits.get(hit.entity, 0) for fault in there), default=0)
