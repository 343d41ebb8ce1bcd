"""The modelled journal: commands in order, committed in groups after a while. What is not committed dies with the host.

A group begins to be written as soon as the one before it is durable, with everything that has come meanwhile, as the
real writer does. A crash in the middle of a commit leaves the whole group on the disk or none of it: which, the seed
says. ``journal.write`` is asked before a group is written, ``journal.sync`` before it is synced.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fault_lab.injection.action import FailErrno
from fault_lab.injection.draw import draw_between, subseed
from host_agent.commands import Command

if TYPE_CHECKING:
    from fault_lab.sim.host import HostNode

#: How long a commit takes: a write and an fdatasync of a disk with its own memory.
_COMMIT_NS: Final = (100_000, 800_000)
#: How often a full disk is tried again, as JournalOptions.probe_interval_s has it.
_PROBE_NS: Final = 1_000_000_000
#: A service manager starts a host that has stopped again after this.
_RESTART_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Logged:
    """A record: a command, its time, and what came of it as the real journal writes it (empty where nobody asks)."""

    now_ns: int
    command: Command
    revision: int
    outcome: bytes


class ModelledJournal:
    """The journal of one host, across its processes."""

    def __init__(self, host: HostNode, seed: int) -> None:
        self._host = host
        self.reseed(seed)
        self._groups = 0
        #: What is on the disk, and what is applied and not there yet.
        self.records: list[Logged] = []
        self._queued: list[Logged] = []
        self._writing: list[Logged] = []
        self._waiting: deque[tuple[int, Callable[[], None], Callable[[], None]]] = deque()
        self.full = False
        self._failed = False

    def reseed(self, seed: int) -> None:
        """Draw from another seed from now on."""
        self._seed = subseed(seed, f"journal/{self._host.name}")

    @property
    def durable(self) -> int:
        """How many records are on the disk for good."""
        return len(self.records)

    @property
    def applied(self) -> int:
        """How many records there are, durable or not."""
        return len(self.records) + len(self._writing) + len(self._queued)

    def append(self, record: Logged) -> None:
        """Queue a record."""
        self._queued.append(record)
        if not self._writing:
            self._write()

    def settled(self, then: Callable[[], None], given_up: Callable[[], None]) -> None:
        """Call ``then`` once all that is applied now is durable; ``given_up`` where it never will be."""
        if self.applied == self.durable:
            then()
        else:
            caused = self._host.world.caused
            self._waiting.append((self.applied, caused(then), caused(given_up)))

    # -- the writer ----------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        self._groups += 1
        failed = self._failure("journal.write")
        if failed == errno.ENOSPC:
            self._host.after(0, "finds the disk full", self._no_room)
            self._writing, self._queued = self._queued, []
            return
        self._writing, self._queued = self._queued, []
        if failed:
            self._failed = True
            self._host.after(0, "cannot write its journal", lambda: self._host.end("journal failed", _RESTART_NS))
            return
        low, high = _COMMIT_NS
        ns = draw_between(self._seed, "commit", self._host.name, self._groups, low=low, high=high)
        self._host.after(ns, "commits", self._sync)

    def _failure(self, point: str) -> int:
        found = self._host.world.hit(point, self._host.name, "commit")
        return found[0].action.errno if found is not None and isinstance(found[0].action, FailErrno) else 0

    def _sync(self) -> None:
        if self._failure("journal.sync"):
            self._host.end("journal failed", _RESTART_NS)
            return
        self.records += self._writing
        self._writing = []
        if self._queued:
            self._write()
        while self._waiting and self._waiting[0][0] <= self.durable:
            self._waiting.popleft()[1]()

    def _no_room(self) -> None:
        """Back to what is durable: what was applied beyond it has not happened, and nobody has heard of it."""
        self.full = True
        self._writing, self._queued = [], []
        waiting, self._waiting = self._waiting, deque()
        self._host.recover("disk full")
        for _, _, given_up in waiting:
            given_up()
        self._host.after(_PROBE_NS, "finds room on the disk", self._room)

    def _room(self) -> None:
        self.full = False

    # -- a crash -------------------------------------------------------------------------------------------------------

    def crash(self, *, ephemeral: bool) -> int:
        """The process has ended: keep the durable prefix; returns how many records are lost."""
        there = self.applied
        torn = draw_between(self._seed, "torn", self._host.name, self._groups, low=0, high=1)
        if torn and not self._failed:
            self.records += self._writing
        if ephemeral:
            self.records.clear()
        self._writing, self._queued = [], []
        self._waiting.clear()
        self.full = self._failed = False
        return there - self.durable
