"""The faults of a plan in a living process: asked from any thread, in real time, with the simulator's numbers.

    faults = LiveFaults(plan, on_fired=print)
    faults.start()                           # time and events count from here
    faults.enter("chaos")                    # nothing is armed before a phase is entered
    firing = faults.hit("link.message", "vms/a->host", "OpenSession request")

Which hits fire is ``fault_lab.plan.numbered``, as in the simulator: hits are numbered from the start on, whether or not
a fault stands there, and a draw is made from (seed, point, entity, hit) alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.action import Action
from fault_lab.injection.draw import draw_between
from fault_lab.plan.numbered import Fired, NumberedFaults


@dataclass(frozen=True, slots=True)
class Firing:
    """A hit that fires: what it is called in a history, and where its further draws come from."""

    fired: Fired
    _seed: int
    _entity_hit: int

    @property
    def action(self) -> Action:
        """What happens; a delay is drawn already."""
        return self.fired.action

    def draw(self, what: str, *, low: int, high: int) -> int:
        """As ``ArmedFault.draw``: which bit, how late a copy, in ``low``..``high``."""
        point, entity = f"{self.fired.point}#{what}", self.fired.entity
        return draw_between(self._seed, point, entity, self._entity_hit, low=low, high=high)


class LiveFaults:
    """What is armed outside of the hosts.

    ``on_fired`` hears of each firing, in order, in the thread that hit it. ``events`` says how many events have
    happened, for windows in events. ``now_ns`` is a clock that never goes back.
    """

    def __init__(
        self,
        plan: plan_pb2.Plan,
        seed: int | None = None,
        *,
        on_fired: Callable[[Fired], None] | None = None,
        events: Callable[[], int] = lambda: 0,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.seed = plan.seed if seed is None else seed
        self._faults = NumberedFaults(plan, self.seed)
        self._on_fired = on_fired
        self._events = events
        self._now_ns = now_ns
        self._start_ns = now_ns()
        # Reentrant: who hears of a firing may look at the faults.
        self._lock = threading.RLock()
        self._listeners: list[Callable[[], object]] = []

    # -- the run -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Now is the beginning, from which windows count."""
        with self._lock:
            self._start_ns = self._now_ns()

    def enter(self, phase: str) -> None:
        """A phase begins, as in the simulator: ``warm``, ``chaos``, ``heal``, ``settle``; empty: nothing is armed."""
        with self._lock:
            self._faults.enter(phase)
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def when_changed(self, listener: Callable[[], object]) -> Callable[[], None]:
        """Call ``listener`` after each change of phase, in the thread that makes it; returns what ends that."""
        with self._lock:
            self._listeners.append(listener)

        def end() -> None:
            with self._lock:
                self._listeners.remove(listener)

        return end

    # -- the points ----------------------------------------------------------------------------------------------------

    def hit(self, point: str, entity: str, trigger: str = "") -> Firing | None:
        """A point was reached; None where nothing fires."""
        with self._lock:
            found = self._faults.hit(point, entity, trigger, self._now_ns() - self._start_ns, self._events())
            if found is None:
                return None
            fired, fault, hit = found
            if self._on_fired is not None:
                self._on_fired(fired)
            return Firing(fired, fault.attributes.seed, fault.entity_hits.get(hit.entity, 0))

    def note(self, fired: Fired) -> None:
        """Something fired in a host, which asks its own faults: it counts for the budget."""
        with self._lock:
            self._faults.fired.append(fired)

    def stands(self, fault: str) -> bool:
        """Whether a fault is armed in this phase."""
        with self._lock:
            return self._faults.stands(fault)

    @property
    def fired(self) -> list[Fired]:
        """What has fired so far."""
        with self._lock:
            return list(self._faults.fired)

    @property
    def phase(self) -> str:
        """The phase that was entered last; empty before the first."""
        return self._faults.phase

    @property
    def over_budget(self) -> bool:
        """Whether more fired than the plan has, so that liveness cannot be asked."""
        with self._lock:
            return self._faults.over_budget
