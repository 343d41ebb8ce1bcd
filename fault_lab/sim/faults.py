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
from fault_lab.injection.hit import Hit
from fault_lab.injection.points import FAULT_POINTS, Seat
from fault_lab.injection.table import ArmedFault, FaultTable
from fault_lab.plan.numbered import Fired, NumberedFaults
from fault_lab.plan.resolve import PlannedArm
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


@dataclass(slots=True)
class _HostFaults:
    """What is armed in one host: the plan's faults by the names that the machine gave them."""

    armed: dict[str, PlannedArm] = field(default_factory=dict)


class WorldFaults(NumberedFaults):
    """The faults of a plan in one run."""

    def __init__(self, plan: plan_pb2.Plan, seed: int) -> None:
        super().__init__(plan, seed)
        self._hosts: dict[str, _HostFaults] = {}

    @property
    def processes_end(self) -> bool:
        """Whether a host may have to come back from its journal."""
        points = {each.fault.point for each in self._run.planned}
        return any(point in ("node.run", "journal.write", "journal.sync") for point in points)

    # -- the hosts' ----------------------------------------------------------------------------------------------------

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
    shifted = fault.window.later(host.now_ns, host.machine.state.revision)
    return ArmFault(
        point=fault.point,
        action=fault.action,
        owner=fault.owner,
        selector=fault.selector,
        attributes=replace(fault.attributes),
        window=shifted,
        gate_ppm=fault.gate_ppm,
    )
