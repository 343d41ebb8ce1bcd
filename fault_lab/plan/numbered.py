"""The faults of a run outside of its hosts, and the number of every hit: the same in the simulator and live.

Every hit of every (point, entity) is numbered from the beginning of the run on, whether or not a fault stands there. So
what fired can be written out as a schedule, and a hit of one world can be named in the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.action import Action
from fault_lab.injection.hit import Hit
from fault_lab.injection.table import ArmedFault
from fault_lab.plan.resolve import RunFaults, forced_hits
from fault_lab.plan.swizzle import plan_name

#: What fires because a branch says so, and not a fault of the plan.
FORCED: Final = "branch"

#: Hits by (point, entity, number) of which a branch says what they do: an action, or None for nothing.
Forced = Mapping[tuple[str, str, int], Action | None]


class Watch(Protocol):
    """Somebody who wants to know of every hit, whether or not it fires."""

    def enter(self, phase: str) -> None:
        """A phase begins."""

    def see(self, hit: Hit, number: int) -> None:
        """A point was reached, by its entity for the ``number``-th time from the beginning of the run on."""


@dataclass(frozen=True, slots=True)
class Fired:
    """One hit that fired: which of its entity's hits of that point it was, and what it did."""

    fault: str
    point: str
    entity: str
    hit: int
    action: Action


class NumberedFaults:
    """The faults of a plan in one run, asked by whoever reaches a point."""

    def __init__(self, plan: plan_pb2.Plan, seed: int, watch: Watch | None = None) -> None:
        self._run = RunFaults(plan, seed)
        self._watch = watch
        self.forced: Forced = forced_hits(plan)
        self._limit = plan.budget.faults if plan.budget.HasField("faults") else None
        self._over_budget = plan.budget.over_budget
        self._counts: Counter[tuple[str, str]] = Counter()
        self._points: frozenset[str] = frozenset()
        self.phase = ""
        self.fired: list[Fired] = []

    @property
    def names(self) -> set[str]:
        """The faults that have fired."""
        return {each.fault for each in self.fired}

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return self._limit is not None and len(self.fired) >= self._limit

    @property
    def over_budget(self) -> bool:
        """Whether more fired than the plan has, so that liveness cannot be asked."""
        return self._over_budget and self._limit is not None and len(self.fired) > self._limit

    def stands(self, fault: str) -> bool:
        """Whether a fault is armed in this phase. What is written out as a hit ends where everything is mended."""
        there = [armed for name, armed in self._run.table.armed.items() if plan_name(name) == fault]
        return any(bool(armed.owner) or self.phase not in ("heal", "settle") for armed in there)

    def enter(self, phase: str) -> None:
        """A phase begins: what is not of it is disarmed, what is of it is armed as it was left."""
        self.phase = phase
        self._run.enter(phase)
        if self._watch is not None:
            self._watch.enter(phase)
        self._points = frozenset(fault.point for fault in self._run.table.armed.values())

    def hit(
        self, point: str, entity: str, trigger: str, now_ns: int, event: int
    ) -> tuple[Fired, ArmedFault, Hit] | None:
        """A point was reached; None where nothing fires. ``now_ns`` and ``event`` count from the beginning on."""
        key = point, entity
        self._counts[key] += 1
        asked = point in self._points and not self._halted
        if not asked and self._watch is None and not self.forced:
            return None
        number = self._counts[key]
        hit = Hit(point=point, entity=entity, trigger=trigger, trace=(point, trigger), now_ns=now_ns, event=event)
        if self._watch is not None:
            self._watch.see(hit, number)
        fault = forced(self.forced, hit, number, self._run.table.hit(hit) if asked else None)
        if fault is None:
            return None
        fired = Fired(plan_name(fault.name), point, entity, number, fault.drawn_action(hit))
        self.fired.append(fired)
        return fired, fault, hit

    @property
    def _halted(self) -> bool:
        return self.spent and not self._over_budget


def forced(changed: Forced, hit: Hit, number: int, fault: ArmedFault | None) -> ArmedFault | None:
    """What fires where a branch may have something to say: the plan's faults have counted the hit all the same."""
    key = hit.point, hit.entity, number
    if key not in changed:
        return fault
    action = changed[key]
    return ArmedFault(name=FORCED, point=hit.point, action=action) if action is not None else None
