"""The agenda: what will happen, ordered by (virtual nanoseconds, number). A heap, written by hand; no event loop.

The number is given when something is put on the agenda, so what is due at one moment happens in the order in which it
was asked for, and a run is the same each time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator


class Entry:
    """Something that will happen at ``at_ns``, at ``node`` ("" for the world). ``cause`` is a record's number.

    ``lane`` is what it must stay in order with; an entry without one is never late, whatever the order (``order``).
    """

    __slots__ = ("at_ns", "cause", "lane", "node", "nr", "run", "what")

    def __init__(
        self, at_ns: int, nr: int, node: str, what: str, run: Callable[[], None], cause: int, lane: str
    ) -> None:
        self.at_ns = at_ns
        self.nr = nr
        self.node = node
        self.what = what
        self.lane = lane
        #: None once it was taken back or has happened.
        self.run: Callable[[], None] | None = run
        self.cause = cause

    def cancel(self) -> None:
        """Take it back; nothing to do where it has happened."""
        self.run = None


class Agenda:
    """The entries that are still to come."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Entry]] = []
        self._nr = 0

    def add(self, at_ns: int, node: str, what: str, run: Callable[[], None], cause: int, lane: str = "") -> Entry:
        """Put something on the agenda."""
        self._nr += 1
        entry = Entry(at_ns, self._nr, node, what, run, cause, lane)
        heapq.heappush(self._heap, (at_ns, self._nr, entry))
        return entry

    def first(self) -> Entry | None:
        """The entry that is due first, which stays; None where nothing is to come."""
        while self._heap and self._heap[0][2].run is None:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def entries(self) -> Iterator[Entry]:
        """Everything that is to come, in order: what a search may choose from."""
        return (entry for _, _, entry in sorted(self._heap, key=lambda each: each[:2]) if entry.run is not None)
