"""What ``link.message`` does on one way of a living link: the rules of ``fault_lab.sim.network``, in real time.

drop        a call's message never arrives: its deadline tells. Of a stream: nothing behind it arrives either, and
            after the time that keep-alives take the stream breaks
corrupt     a broken frame: the call, or the stream, ends UNAVAILABLE, and its other end hears that it is cancelled
duplicate   a unary request arrives again, over a connection of its own; anything else counts once
reorder     overtaken by up to so many messages that are sent after it on the same way; of a stream: it is in order
hold        it and all messages behind it wait, until a time, or until the fault does not stand any more
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Final

from fault_lab.injection.action import Corrupt, Delay, Drop, Duplicate, Hold, Reorder
from fault_lab.injection.draw import draw_between, subseed
from fault_lab.live.points import Firing, LiveFaults
from fault_lab.live.proxy.lane import BrokenPart, Passage
from fault_lab.live.proxy.way import Way

_NS: Final = 1_000_000_000
#: A message that nobody overtakes goes on all the same.
_OVERTAKEN_NS: Final = 100_000_000
#: A copy comes at most so much later: the longest that a message takes where a plan does not say.
_COPY_NS: Final = 200_000
POINT: Final = "link.message"


class Fate(enum.Enum):
    """What becomes of a message, beyond when it leaves."""

    CARRIED = "carried"
    LOST = "lost"
    BROKEN = "broken"
    DOUBLED = "doubled"


class Link:
    """The messages of one way, over all connections of a proxy. ``latency`` is a range in nanoseconds."""

    def __init__(self, way: Way, faults: LiveFaults, latency: tuple[int, int]) -> None:
        self._way = way
        self._faults = faults
        self._latency = latency
        self._seed = subseed(faults.seed, "network")
        self._sent = 0
        self._held_by: str | None = None
        self._held: list[Passage] = []
        self._overtaken: list[tuple[int, Passage]] = []
        self._timers: set[asyncio.TimerHandle] = set()

    def send(self, passage: Passage, what: str, *, stream: bool, doubles: bool = False) -> tuple[Fate, Firing | None]:
        """A message begins: ask the point, and say when it leaves. ``what`` is the trigger of the hit."""
        self._sent += 1
        self._way.messages += 1
        firing = self._faults.hit(POINT, self._way.name, what)
        fate, extra_ns = Fate.CARRIED, 0
        if firing is not None:
            self._way.fired += 1
            match firing.action:
                case Drop():
                    return Fate.LOST, firing
                case Corrupt():
                    fate, passage.lost = Fate.BROKEN, True
                    passage.parts[:] = [BrokenPart()]
                case Delay(min_ns=ns):
                    extra_ns = ns
                case Duplicate() if doubles:
                    fate = Fate.DOUBLED
                case Reorder(depth=depth) if not stream:
                    self._overtaken.append((depth, passage))
                    self._after(_OVERTAKEN_NS, lambda: self._not_overtaken(passage))
                    return Fate.CARRIED, firing
                case Hold(for_ns=ns):
                    self._hold(firing.fired.fault, ns)
                case _:
                    pass
        self._carry(passage, extra_ns)
        self._let_by()
        return fate, firing

    def changed(self) -> None:
        """The phase is another: let go what is held by a fault that does not stand any more."""
        if self._held_by is not None and not self._faults.stands(self._held_by):
            self._let_go()

    def close(self) -> None:
        """Nothing of it is to happen any more."""
        for timer in self._timers:
            timer.cancel()

    def _carry(self, passage: Passage, extra_ns: int = 0) -> None:
        if self._held_by is not None:
            self._held.append(passage)
            return
        low, high = self._latency
        if high:
            extra_ns += draw_between(self._seed, "latency", self._way.name, self._sent, low=low, high=high)
        if extra_ns:
            self._after(extra_ns, passage.let_go)
        else:
            passage.let_go()

    def _let_by(self) -> None:
        """One more message has overtaken those that were to be overtaken."""
        waiting, self._overtaken = self._overtaken, []
        for depth, passage in waiting:
            if depth > 1:
                self._overtaken.append((depth - 1, passage))
            else:
                self._carry(passage)

    def _not_overtaken(self, passage: Passage) -> None:
        if any(each is passage for _, each in self._overtaken):
            self._overtaken = [pair for pair in self._overtaken if pair[1] is not passage]
            self._carry(passage)

    def _hold(self, fault: str, ns: int) -> None:
        self._held_by = fault
        if ns:
            self._after(ns, self._let_go)

    def _let_go(self) -> None:
        self._held_by = None
        held, self._held = self._held, []
        for passage in held:
            self._carry(passage)

    def _after(self, ns: int, then: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            then()

        timer = asyncio.get_running_loop().call_later(ns / _NS, run)
        self._timers.add(timer)


def copy_delays_ns(firing: Firing) -> list[int]:
    """How late each copy of a doubled message comes."""
    assert isinstance(firing.action, Duplicate)
    return [firing.draw(f"copy-{nr}", low=0, high=_COPY_NS) for nr in range(firing.action.copies)]
