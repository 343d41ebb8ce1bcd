"""What can go wrong with a state directory. Every text says what was found and what to do about it."""

from __future__ import annotations


class JournalError(Exception):
    """A state directory that cannot be used as it is."""


class DirectoryInUseError(JournalError):
    """Another process has the directory."""


class VersionError(JournalError):
    """The directory, or the SQLite underneath, has a version that this release does not work with."""


class DamagedError(JournalError):
    """A record, or the books about the records, is not as it was written. ``n`` is the first record that is bad."""

    def __init__(self, n: int, text: str) -> None:
        super().__init__(text)
        self.n = n


class ReplayMismatchError(JournalError):
    """A record that is intact led to another outcome than the one it holds. ``n`` is its number.

    ``details`` is the command, what was expected and what was found. Register content may be in it, so it is for
    whoever may read the directory, and for no log and no client.
    """

    def __init__(self, n: int, text: str, details: str = "") -> None:
        super().__init__(text)
        self.n = n
        self.details = details


class StorageFullError(JournalError):
    """There is no room for a record. What was not committed has not happened."""


class StorageFailedError(JournalError):
    """A write or a sync failed, and nobody knows what is on the disk: the agent has to stop."""
