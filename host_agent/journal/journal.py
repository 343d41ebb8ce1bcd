"""What a host agent holds of its journal: append as commands are applied, and wait until that is durable.

    applied     the machine has carried the command out; its record is queued (``append``)
    durable     the record is committed; what knows of it may leave the process (``settled``)

One rule, in one place: whoever hands something out first waits for ``settled``. An ephemeral host goes the same way and
never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from host_agent.commands import Command
from host_agent.state import HostState


def nothing() -> None:
    """What happens before a commit where nobody breaks anything on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalOptions:
    """Where a journal is and how it is kept. ``vfs`` is the SQLite VFS it is opened with: one that fails on purpose."""

    directory: Path
    #: Guest events and other commands between two snapshots: what a start has to replay at most, or a little more.
    snapshot_every: int = 50_000
    #: Records kept before those that recovery needs.
    history: int = 100_000
    #: How often a full disk is tried again, in seconds.
    probe_interval_s: float = 1.0
    vfs: str = ""
    #: Called on the writer's thread before each group of records is written.
    before_commit: Callable[[], None] = nothing


class Journal(Protocol):
    """Where commands are recorded."""

    @property
    def generation(self) -> int:
        """How often the machine was set back to what is durable. What was made in an earlier one never happened."""

    def admit(self) -> None:
        """Refuse a command before it is applied. Raises ``StorageFullError``, ``StorageFailedError``."""

    def append(self, state: HostState, command: Command, result: object) -> None:
        """Record a command that was applied just now: its reply, or the exception it ended with."""

    async def settled(self, generation: int) -> None:
        """Return when everything applied so far is durable. Raises if that will never be, or is of an older time."""

    async def room(self) -> None:
        """Return when the queue is short enough to take more from somebody who waits for no answer."""

    def close(self, state: HostState) -> None:
        """Make what is queued durable and end. ``state`` is what all of that has led to."""


class NoJournal:
    """An ephemeral host's: nothing is kept, so nothing is waited for."""

    generation: Final = 0

    def admit(self) -> None:
        """Everything is taken."""

    def append(self, state: HostState, command: Command, result: object) -> None:
        """Nothing is recorded."""

    async def settled(self, generation: int) -> None:
        """What is applied is as durable as it gets."""

    async def room(self) -> None:
        """There is always room."""

    def close(self, state: HostState) -> None:
        """Nothing is open."""
