"""The index of deadlines: what is due next is found without looking at everything that has one.

A heap of (time, record). An entry may be too early, since leases are renewed without telling the heap, and of a
record that is gone; it is never too late. So what is before the first entry is certainly not due, and who wants to
know exactly looks at the first entry until that is true of its record.

The index follows from the records. It is no part of a snapshot or a digest.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Protocol

#: Entries of records that are gone are thrown away when there are this many more than records.
_SLACK = 1024


class Timed(Protocol):
    """A record that something happens to by itself: a session, a control, an exit."""

    @property
    def deadline_ns(self) -> int | None:
        """When, on the host's clock; None for never."""


class Deadlines:
    """Earliest first. ``live`` says whether a record is there still, ``records`` are all that are."""

    def __init__(self, live: Callable[[Timed], bool], records: Callable[[], Iterable[Timed]]) -> None:
        self._live = live
        self._records = records
        self._order = itertools.count()
        self._heap: list[tuple[int, int, Timed]] = []
        self._size_after_sweep = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, record: Timed) -> None:
        """A record is new, or its deadline may now be earlier than it was."""
        self._push(record)
        if len(self._heap) > 2 * self._size_after_sweep + _SLACK:
            self.sweep()

    def sweep(self) -> None:
        """Begin anew with the records that there are."""
        self._heap.clear()
        for record in self._records():
            self._push(record)
        self._size_after_sweep = len(self._heap)

    def _push(self, record: Timed) -> None:
        when_ns = record.deadline_ns
        if when_ns is not None:
            heapq.heappush(self._heap, (when_ns, next(self._order), record))

    def may_be_due(self, now_ns: int) -> bool:
        """Whether something could be due; False is certain."""
        return bool(self._heap) and self._heap[0][0] <= now_ns

    def first_ns(self) -> int | None:
        """The earliest deadline; None where nothing has one."""
        while self._heap:
            when_ns, _, record = self._heap[0]
            if not self._live(record):
                heapq.heappop(self._heap)
            elif record.deadline_ns == when_ns:
                return when_ns
            else:
                heapq.heappop(self._heap)
                self._push(record)
        return None
