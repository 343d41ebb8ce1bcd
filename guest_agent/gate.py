"""A gate in front of a scripted vCPU: PAUSE closes it, RESUME opens it, and whoever is behind it goes on meanwhile."""

from __future__ import annotations

import threading


class Gate:
    """Open at first. Its methods are for any threads.

    Attributes:
        waits: whether a thread stands in front of it.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._closed = False
        self._for_good = False
        self.waits = False

    def close(self) -> None:
        """Let nobody pass any more, unless it was opened for good."""
        with self._turn:
            self._closed = not self._for_good

    def open(self, *, for_good: bool = False) -> None:
        """Let everybody pass; `for_good`: whatever is closed later."""
        with self._turn:
            self._closed = False
            self._for_good = self._for_good or for_good
            self._turn.notify_all()

    def wait(self) -> None:
        """Pass, or block until that is possible."""
        with self._turn:
            self.waits = self._closed
            self._turn.wait_for(lambda: not self._closed)
            self.waits = False
