"""The faults of one run: those of the world are asked here, those of a host are armed in its machine.

What fires in a machine has to be part of what its log replays, so a host's faults go there as commands, with the seeds
that the plan gives them. Either way every hit of every (point, entity) is numbered from the beginning of the run on,
which is what turns a run into an explicit schedule.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.action import Action, Drop
from fault_lab.injection.hit import Hit, Window
from fault_lab.injection.points import FAULT_POINTS, Seat
from fault_lab.injection.table import ArmedFault, FaultTable
from fault_lab.plan.resolve import PlannedArm, RunFaults
from host_agent.commands import ArmFault, DisarmFault

if TYPE_CHECKING:
    from fault_lab.sim.host import HostNode

#: A fault at no point of ours, so that a machine whose faults are all disarmed still numbers its hits.
COUNTING = "sim.counting"


class CountingTable(FaultTable):
    """A machine's faults, which number every hit and remember which of them fired."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.fired: list[tuple[str, Hit, int, Action]] = []

    def hit(self, hit: Hit, *, owner: str = "") -> ArmedFault | None:
        """As ever, and counted."""
        key = hit.point, hit.entity
        self.counts[key] += 1
        fault = super().hit(hit, owner=owner)
        if fault is not None:
            self.fired.append((fault.name, hit, self.counts[key], fault.drawn_action(hit)))
        return fault


@dataclass(frozen=True, slots=True)
class Fired:
    """One hit that fired: which of its entity's hits of that point it was, and what it did."""

    fault: str
    point: str
    entity: str
    hit: int
    action: Action


@dataclass(slots=True)
class _HostFaults:
    """What is armed in one host: the plan's faults by the names that the machine gave them."""

    armed: dict[str, PlannedArm] = field(default_factory=dict)


class WorldFaults:
    """The faults of a plan in one run."""

    def __init__(self, plan: plan_pb2.Plan, seed: int) -> None:
        self._run = RunFaults(plan, seed)
        self._hosts: dict[str, _HostFaults] = {}
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

    @property
    def processes_end(self) -> bool:
        """Whether a host may have to come back from its journal."""
        points = {each.fault.point for each in self._run.planned}
        return any(point in ("node.run", "journal.write", "journal.sync") for point in points)

    def stands(self, fault: str) -> bool:
        """Whether a fault is armed in this phase."""
        return fault in self._run.table.armed

    # -- the world's points --------------------------------------------------------------------------------------------

    def hit(
        self, point: str, entity: str, trigger: str, now_ns: int, event: int
    ) -> tuple[Fired, ArmedFault, Hit] | None:
        """A point of the world was reached; None where nothing fires."""
        key = point, entity
        self._counts[key] += 1
        if point not in self._points or (self.spent and not self._over_budget):
            return None
        hit = Hit(point=point, entity=entity, trigger=trigger, trace=(point, trigger), now_ns=now_ns, event=event)
        fault = self._run.table.hit(hit)
        if fault is None:
            return None
        fired = Fired(fault.name, point, entity, self._counts[key], fault.drawn_action(hit))
        self.fired.append(fired)
        return fired, fault, hit

    # -- the hosts' ----------------------------------------------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """A phase begins for the points of the world; hosts are told by ``arm``."""
        self.phase = phase
        self._run.enter(phase)
        self._points = frozenset(fault.point for fault in self._run.table.armed.values())

    def arm(self, host: HostNode) -> None:
        """Make the faults of a host's machine those of the phase; what stands in both phases goes on counting."""
        mine = self._hosts.setdefault(host.name, _HostFaults())
        there = host.machine.state.faults.armed
        if not any(fault.point == COUNTING for fault in there.values()):
            host.apply(ArmFault(point=COUNTING, action=Drop(), owner="sim"))
        mine.armed = {name: planned for name, planned in mine.armed.items() if name in there}
        for name, planned in list(mine.armed.items()):
            if self.phase not in planned.phases or self._halted:
                host.apply(DisarmFault(name=name))
                del mine.armed[name]
        if self._halted:
            return
        wanted = [each for each in self._run.planned if self.phase in each.phases and _is_hosts(each)]
        for planned in wanted:
            if planned not in mine.armed.values():
                armed: ArmedFault = host.apply(_arming(planned.fault, host))
                mine.armed[armed.name] = planned

    @property
    def _halted(self) -> bool:
        return self.spent and not self._over_budget

    def host_fired(self, host: HostNode, name: str, hit: Hit, number: int, action: Action) -> Fired | None:
        """Take note of what fired in a machine; None where it is none of the plan's."""
        planned = self._hosts.setdefault(host.name, _HostFaults()).armed.get(name)
        if planned is None:
            return None
        fired = Fired(planned.fault.name, hit.point, hit.entity, number, action)
        self.fired.append(fired)
        return fired


def _is_hosts(planned: PlannedArm) -> bool:
    return FAULT_POINTS[planned.fault.point].seat is Seat.HOST


def _arming(fault: ArmedFault, host: HostNode) -> ArmFault:
    """The command; a plan's windows count from the beginning of the run, a machine's from the arming."""
    now_ns, revision, window = host.now_ns, host.machine.state.revision, fault.window
    until_ns, until_events = window.until_ns, window.until_events
    shifted = Window(
        after_ns=max(0, window.after_ns - now_ns),
        until_ns=None if until_ns is None else max(0, until_ns - now_ns),
        after_events=max(0, window.after_events - revision),
        until_events=None if until_events is None else max(0, until_events - revision),
    )
    return ArmFault(
        point=fault.point,
        action=fault.action,
        owner=fault.owner,
        selector=fault.selector,
        attributes=replace(fault.attributes),
        window=shifted,
        gate_ppm=fault.gate_ppm,
    )
