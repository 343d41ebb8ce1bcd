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

from fault_lab.injection.action import Action, Delay, Drop
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.draw import PPM, subseed
from fault_lab.injection.hit import Hit
from fault_lab.injection.points import FAULT_POINTS, Seat
from fault_lab.injection.table import ArmedFault, FaultTable
from fault_lab.plan.numbered import FORCED, Fired, Forced, NumberedFaults, Watch, forced
from fault_lab.plan.resolve import PlannedArm
from host_agent.commands import ArmFault, DisarmFault

if TYPE_CHECKING:
    from fault_lab.sim.host import HostNode

#: A fault at no point of ours, so that a machine whose faults are all disarmed still numbers its hits.
COUNTING = "sim.counting"


class CountingTable(FaultTable):
    """A machine's faults, which number every hit and remember those, and which of them fired."""

    def __init__(self, forced: Forced) -> None:
        super().__init__()
        self._forced = forced
        self.counts: Counter[tuple[str, str]] = Counter()
        self.hits: list[tuple[Hit, int]] = []
        self.fired: list[tuple[str, Hit, int, Action]] = []

    def hit(self, hit: Hit, *, owner: str = "") -> ArmedFault | None:
        """As ever, and counted."""
        key = hit.point, hit.entity
        self.counts[key] += 1
        number = self.counts[key]
        self.hits.append((hit, number))
        fault = forced(self._forced, hit, number, super().hit(hit, owner=owner))
        if fault is not None:
            self.fired.append((fault.name, hit, number, fault.drawn_action(hit)))
        return fault

    def forget(self) -> None:
        """What was remembered is of no more interest."""
        self.hits.clear()
        self.fired.clear()


@dataclass(slots=True)
class _HostFaults:
    """What is armed in one host: the plan's faults by the names that the machine gave them."""

    armed: dict[str, PlannedArm] = field(default_factory=dict)


class WorldFaults(NumberedFaults):
    """The faults of a plan in one run."""

    def __init__(self, plan: plan_pb2.Plan, seed: int, watch: Watch | None = None) -> None:
        super().__init__(plan, seed, watch)
        self._seed = seed
        self._hosts: dict[str, _HostFaults] = {}

    @property
    def processes_end(self) -> bool:
        """Whether a host may have to come back from its journal."""
        points = {each.fault.point for each in self._run.planned} | {point for point, _, _ in self.forced}
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
            elif there[name].attributes.seed != planned.fault.attributes.seed:
                del mine.armed[name]
                self._arm_again(host, name, planned)
        if self._halted:
            return
        wanted = [each for each in self._run.planned if self.phase in each.phases and _is_hosts(each)]
        for planned in wanted:
            if planned not in mine.armed.values():
                armed: ArmedFault = host.apply(_arming(planned.fault, host))
                mine.armed[armed.name] = planned

    def _arm_again(self, host: HostNode, name: str, planned: PlannedArm) -> None:
        """Draw from the fault's new seed, with what its attributes have left; an interval begins anew."""
        was: ArmedFault = host.apply(DisarmFault(name=name))
        left = replace(was.attributes, seed=planned.fault.attributes.seed)
        armed: ArmedFault = host.apply(_arming(planned.fault, host, left))
        self._hosts[host.name].armed[armed.name] = planned

    def reseed(self, seed: int) -> None:
        """Draw from another seed from now on; hosts are told by ``arm``.

        Who was picked and which gates were open was drawn at the beginning, and stays.
        """
        for fault in (planned.fault for planned in self._run.planned):
            was = subseed(self._seed, f"fault/{fault.name}")
            if fault.owner and fault.attributes.seed == was and _draws(fault) and not fault.gated_out:
                fault.gate_ppm = PPM
                fault.attributes = replace(fault.attributes, seed=subseed(seed, f"fault/{fault.name}"))
        self._seed = seed

    def seen(self, hits: list[tuple[Hit, int]]) -> None:
        """Hits of a machine."""
        if self._watch is not None:
            for hit, number in hits:
                self._watch.see(hit, number)

    def host_fired(self, host: HostNode, name: str, hit: Hit, number: int, action: Action) -> Fired | None:
        """Take note of what fired in a machine; None where it is none of the plan's."""
        planned = self._hosts.setdefault(host.name, _HostFaults()).armed.get(name)
        if planned is None and name != FORCED:
            return None
        fired = Fired(planned.fault.name if planned else FORCED, hit.point, hit.entity, number, action)
        self.fired.append(fired)
        return fired


def _draws(fault: ArmedFault) -> bool:
    """Whether another seed makes a difference to which hits fire, or to what a machine does then."""
    if not _is_at_host(fault):
        return True
    action = fault.action
    ranged = isinstance(action, Delay) and action.min_ns != action.max_ns
    return not fault.attributes.fail_nth and (ranged or fault.attributes.probability_ppm < PPM)


def _is_hosts(planned: PlannedArm) -> bool:
    return _is_at_host(planned.fault)


def _is_at_host(fault: ArmedFault) -> bool:
    return FAULT_POINTS[fault.point].seat is Seat.HOST


def _arming(fault: ArmedFault, host: HostNode, left: FaultAttributes | None = None) -> ArmFault:
    """The command; a plan's windows count from the beginning of the run, a machine's from the arming."""
    shifted = fault.window.later(host.now_ns, host.machine.state.revision)
    return ArmFault(
        point=fault.point,
        action=fault.action,
        owner=fault.owner,
        selector=fault.selector,
        attributes=replace(left or fault.attributes),
        window=shifted,
        gate_ppm=fault.gate_ppm,
    )
