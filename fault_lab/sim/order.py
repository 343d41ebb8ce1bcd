"""Another order than that of time: which entry of the agenda happens next, where a plan's ``order`` says something.

    at 12.0 ms   host commits                         what is due first
    at 12.3 ms   vms/a->host SubmitEvents request     one of these may go before it,
    at 12.9 ms   vms/a wakes                          and then it is late
    at 13.1 ms   ...                                  too far off: nothing is late by more than the slack

Whatever goes first takes the world's time with it, so a run in another order is one whose messages and timers took up
to ``slack`` longer. Within a lane entries keep their order, and what has no lane is never late.

Priorities: Burckhardt, Kothari, Musuvathi, Nagarakatte 2010 (doi 10.1145/1736020.1736040). A bug that needs ``d``
things in one order is found by one of n lanes in k steps with a chance of at least 1/(n * k**(d-1)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.draw import draw64, draw_between, subseed
from fault_lab.sim.agenda import Agenda, Entry
from fault_lab.wire.duration import duration_ns

_SLACK_NS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Deviation:
    """At this step, from 1, this lane went first, and would not have by time."""

    step: int
    lane: str


class Order:
    """The order of one run. ``taken`` are the deviations from time so far."""

    def __init__(self, order: plan_pb2.Order, seed: int) -> None:
        self._slack_ns = duration_ns("slack", order.slack) if order.HasField("slack") else _SLACK_NS
        self._planned = {each.step: each.lane for each in order.deviations}
        self._by_priority = order.HasField("priorities")
        self._changes, self._steps = order.priorities.changes, order.priorities.steps
        self._put_behind: dict[str, int] = {}
        self.taken: list[Deviation] = []
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Draw priorities and changes from another seed from now on."""
        self._seed = subseed(seed, "order")
        changes = range(1, self._changes + 1)
        self._changes_at = {draw_between(self._seed, "change", "", nr, low=1, high=self._steps) for nr in changes}

    def choose(self, agenda: Agenda, first: Entry, step: int, end_ns: int) -> Entry:
        """The entry that happens in ``step``; ``first`` is due first, and nothing due after ``end_ns`` is taken."""
        if not first.lane or not (self._by_priority or step in self._planned):
            return first
        heads = {entry.lane: entry for entry in self._open(agenda, min(first.at_ns + self._slack_ns, end_ns))}
        chosen = self._highest(heads, step) if self._by_priority else first
        chosen = heads.get(self._planned.get(step, ""), chosen)
        if chosen is not first:
            self.taken.append(Deviation(step, chosen.lane))
        return chosen

    @staticmethod
    def _open(agenda: Agenda, last_ns: int) -> Iterator[Entry]:
        """The first entry of each lane that may happen now, up to what must not be late."""
        seen: set[str] = set()
        for entry in agenda.entries():
            if entry.at_ns > last_ns or not entry.lane:
                return
            if entry.lane not in seen:
                seen.add(entry.lane)
                yield entry

    def _highest(self, heads: dict[str, Entry], step: int) -> Entry:
        lane = max(heads, key=self._priority)
        if step in self._changes_at:
            self._put_behind[lane] = -len(self._put_behind) - 1
            lane = max(heads, key=self._priority)
        return heads[lane]

    def _priority(self, lane: str) -> int:
        return self._put_behind.get(lane) or draw64(self._seed, "lane", lane, 0)
