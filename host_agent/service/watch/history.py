"""What changed lately: a bounded history in memory, and the watchers that read along in it.

    list or watch     from now on, somebody may want to know what changed
    before(command)   look at what the command may change
    after             look again: what differs is one group of changes, all of one revision
    watchers          each has its place in the history; who is so slow that its place is forgotten has to list again

A host that nobody asks keeps no history, and pays one condition a command for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fpstate.v1 import watch_pb2

from host_agent.commands import Command
from host_agent.effects import Effect, ExitChanged, MigrationChanged, VcpusTaken
from host_agent.migration_commands import CommitMigration, ImportVm
from host_agent.service.clock import Clock
from host_agent.service.errors import Failure
from host_agent.service.limits import HISTORY_BYTES_MAX, HISTORY_KEPT_NS, HISTORY_MAX
from host_agent.service.watch.resources import Resource, names_in, resource, same, uid
from host_agent.service.watch.touched import touched
from host_agent.state import HostState


@dataclass(frozen=True, slots=True)
class Change:
    """One resource after a change, or before its deletion. ``owner`` is the principal whose session it is, if it is."""

    kind: watch_pb2.ChangeKind.ValueType
    name: str
    uid: str
    resource: Resource
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """All changes of one revision: what goes away first, from the leaves; then what is there, from the roots."""

    revision: int
    changes: tuple[Change, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Before:
    """What a command may change, as it was before; None for what was not there. ``owners`` are those of sessions.

    ``vms`` are all there are; None for a command that brings no VM with everything in it.
    """

    resources: dict[str, Resource | None]
    owners: dict[str, str]
    vms: frozenset[str] | None


class LappedError(Exception):
    """What a watcher would read next is forgotten."""


class History:
    """The changes after revision ``since``, as far as they fit, and who watches."""

    def __init__(
        self, state: HostState, clock: Clock, *, changes_max: int = HISTORY_MAX, bytes_max: int = HISTORY_BYTES_MAX
    ) -> None:
        self._state = state
        self._clock = clock
        self._changes_max, self._bytes_max = changes_max, bytes_max
        #: Whether changes are kept: somebody watches, or has asked lately.
        self.on = False
        #: The oldest revision from which all changes are known.
        self.since = 0
        self._until_ns = 0
        self._groups: deque[Group] = deque()
        #: The place of the first group: how many were forgotten before it.
        self._first = 0
        self._changes = self._bytes = 0
        self._watchers: dict[Watcher, None] = {}
        #: Set while nobody watches.
        self.empty = asyncio.Event()
        self.empty.set()

    def __len__(self) -> int:
        return self._changes

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._watchers)

    # -- keeping -------------------------------------------------------------------------------------------------------

    def wanted(self) -> None:
        """Somebody lists, or watches: keep what changes from now on, for a while at least."""
        if not self.on:
            self._forget_all()
            self.on = True
        self._until_ns = self._clock.now_ns() + HISTORY_KEPT_NS

    def before(self, command: Command, now_ns: int) -> Before | None:
        """Look at what a command may change; None where nobody has wanted to know for long. Only while it is ``on``."""
        if not self._watchers and self._clock.now_ns() > self._until_ns:
            self.on = False
            self._forget_all()
            return None
        state = self._state
        names = touched(state, command, now_ns)
        owners = {name: state.sessions[name].principal for name in names if name in state.sessions}
        brings = isinstance(command, CommitMigration | ImportVm)
        vms = frozenset(state.vms) if brings else None
        return Before({name: resource(state, name) for name in names}, owners, vms)

    def after(self, before: Before, effects: Iterable[Effect]) -> None:
        """Look again, and keep what differs as a group of changes."""
        was = dict(before.resources)
        for effect in effects:
            match effect:
                case ExitChanged(exit=name) | VcpusTaken(session=name) | MigrationChanged(migration=name):
                    was.setdefault(name, None)
        for vm in self._state.vms.keys() - before.vms if before.vms is not None else ():
            was.update(dict.fromkeys(names_in(self._state.vms[vm])))
        changes = [change for name, old in was.items() for change in self._compared(name, old, before.owners)]
        if changes:
            self._append(changes)

    def _compared(self, name: str, old: Resource | None, owners: dict[str, str]) -> Iterator[Change]:
        state = self._state
        new = resource(state, name)
        if old is not None and new is not None and uid(state, old) == uid(state, new):
            if not same(old, new):
                yield Change(watch_pb2.CHANGE_KIND_UPDATED, name, uid(state, new), new, self._owner(name))
            return
        if old is not None:
            yield Change(watch_pb2.CHANGE_KIND_DELETED, name, uid(state, old), old, owners.get(name, ""))
        if new is not None:
            yield Change(watch_pb2.CHANGE_KIND_CREATED, name, uid(state, new), new, self._owner(name))

    def _owner(self, name: str) -> str:
        session = self._state.sessions.get(name)
        return session.principal if session is not None else ""

    def _append(self, changes: list[Change]) -> None:
        ordered = tuple(sorted(changes, key=_order))
        group = Group(self._state.revision, ordered, sum(change.resource.ByteSize() for change in ordered))
        self._groups.append(group)
        self._changes += len(ordered)
        self._bytes += group.size_bytes
        while self._changes > self._changes_max or self._bytes > self._bytes_max:
            self._forget_first()
        for watcher in self._watchers:
            watcher.wake()

    def _forget_first(self) -> None:
        first = self._groups.popleft()
        self._first += 1
        self._changes -= len(first.changes)
        self._bytes -= first.size_bytes
        self.since = first.revision

    def _forget_all(self) -> None:
        self._first += len(self._groups)
        self._groups.clear()
        self._changes = self._bytes = 0
        self.since = self._state.revision

    def roll_back(self, failure: Failure) -> None:
        """What is kept has not happened, and what the watchers wait for will be told otherwise: end them."""
        self._forget_all()
        self.finish(failure)

    # -- reading -------------------------------------------------------------------------------------------------------

    def place_after(self, revision: int) -> int:
        """Where the first group after ``revision`` is, or will be. Raises ``LappedError``."""
        if revision < self.since:
            raise LappedError
        known = sum(group.revision <= revision for group in self._groups)
        return self._first + known

    def group(self, place: int) -> Group | None:
        """The group at a place; None where nothing is yet. Raises ``LappedError``."""
        if place < self._first:
            raise LappedError
        nr = place - self._first
        return self._groups[nr] if nr < len(self._groups) else None

    def add(self, watcher: Watcher) -> None:
        """Wake it with every change."""
        self._watchers[watcher] = None
        self.empty.clear()

    def remove(self, watcher: Watcher) -> None:
        """It has gone."""
        self._watchers.pop(watcher, None)
        self._until_ns = self._clock.now_ns() + HISTORY_KEPT_NS  # it may come back
        if not self._watchers:
            self.empty.set()

    def finish(self, failure: Failure) -> None:
        """End every watcher's stream."""
        for watcher in self._watchers:
            watcher.finish(failure)


class Watcher:
    """One watcher's place in the history: it takes a group at a time, and costs no memory while it does not."""

    def __init__(self, history: History, place: int) -> None:
        self._history = history
        self._place = place
        self._wake = asyncio.Event()
        self._failure: Failure | None = None
        self._retired = False

    @property
    def over(self) -> bool:
        """Its stream is old enough, and it has taken everything."""
        return self._retired and self._history.group(self._place) is None

    def wake(self) -> None:
        """Something is there."""
        self._wake.set()

    def finish(self, failure: Failure) -> None:
        """End the stream with ``failure``, at once."""
        self._failure = failure
        self._wake.set()

    def retire(self) -> None:
        """End the stream well, with what is there."""
        self._retired = True
        self._wake.set()

    def take(self) -> Group | None:
        """The next group; None where it has all of them. Raises ``LappedError``, and what it was finished with."""
        if self._failure is not None:
            raise self._failure
        group = self._history.group(self._place)
        self._place += group is not None
        if group is None:
            self._wake.clear()
        return group

    async def news(self, timeout_s: float) -> None:
        """Wait for a group, ``timeout_s`` seconds at most."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            pass


def _order(change: Change) -> tuple[bool, int]:
    """Deletions first, the deepest of them first; then the rest, the highest first."""
    depth = change.name.count("/")
    is_there = change.kind != watch_pb2.CHANGE_KIND_DELETED
    return is_there, depth if is_there else -depth
