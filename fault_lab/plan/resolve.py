"""A plan made ready for one run: its faults armed with their own seeds, who was picked, and which phase has them.

    run = RunFaults(plan, seed)
    run.enter("chaos")                  # at each change of phase
    fired = run.hit(hit)                # at each point

Everything is drawn from the seed and the names in the plan, so leaving one fault out changes nothing about the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.action import Action, FailErrno
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.draw import PPM, draw64, subseed
from fault_lab.injection.hit import Hit, Selector, Window
from fault_lab.injection.points import FAULT_POINTS, ErrorClass, FaultPoint
from fault_lab.injection.table import ArmedFault, FaultTable
from fault_lab.plan.entities import entities, links, nodes
from fault_lab.plan.swizzle import swizzled
from fault_lab.wire.action import action_from_proto
from fault_lab.wire.fault import attributes_from_proto, selector_from_proto, window_from_proto

PHASES: Final = ("warm", "chaos", "heal", "settle")
_PHASE_NAMES: Final = dict(enumerate(PHASES, start=1))


@dataclass(frozen=True, slots=True)
class PlannedArm:
    """A fault of the plan as one run has it, and the phases in which it is armed."""

    fault: ArmedFault
    phases: frozenset[str]


class RunFaults:
    """The faults of one run. ``table`` has those of the phase that the run is in; counts outlive phases."""

    def __init__(self, plan: plan_pb2.Plan, seed: int | None = None) -> None:
        self.planned = planned_faults(plan, plan.seed if seed is None else seed)
        self.table = FaultTable()
        self._budget = plan.budget.faults if plan.budget.HasField("faults") else None
        self._over_budget = plan.budget.over_budget

    @property
    def fired(self) -> dict[str, int]:
        """How often each fault fired, by its name in the plan."""
        return {each.fault.name: each.fault.fired for each in self.planned}

    @property
    def over_budget(self) -> bool:
        """Whether more fired than the budget has: liveness cannot be asked of such a run."""
        return self._budget is not None and sum(self.fired.values()) > self._budget

    def enter(self, phase: str) -> None:
        """A phase begins: what is not of it is disarmed, what is of it is armed as it was left."""
        self.table.armed = {each.fault.name: each.fault for each in self.planned if phase in each.phases}

    def hit(self, hit: Hit) -> ArmedFault | None:
        """A point was reached. None where no fault fires, or the budget is used up and must not be exceeded."""
        if self._budget is not None and not self._over_budget and sum(self.fired.values()) >= self._budget:
            return None
        return self.table.hit(hit)


def planned_faults(plan: plan_pb2.Plan, seed: int) -> list[PlannedArm]:
    """Arm every fault of the plan, and of its schedule, for the run of ``seed``; times begin with the run."""
    return [
        *(
            each
            for nr, fault in enumerate(plan.faults)
            for each in swizzled(plan, fault, _planned(plan, fault, nr, seed))
        ),
        *(_scheduled(hit, nr) for nr, hit in enumerate(plan.schedule.hits)),
    ]


def forced_hits(plan: plan_pb2.Plan) -> dict[tuple[str, str, int], Action | None]:
    """What the branches of a plan say of hits by (point, entity, number): what happens, None for nothing."""
    found: dict[tuple[str, str, int], Action | None] = {}
    for nr, branch in enumerate(plan.branches):
        for hit_nr, hit in enumerate(branch.fire):
            found[hit.point, hit.entity, hit.hit] = _action(hit.point, hit, f"branches[{nr}].fire[{hit_nr}].action")
        found |= {(hit.point, hit.entity, hit.hit): None for hit in branch.drop}
    return found


def named_points(plan: plan_pb2.Plan) -> set[str]:
    """The points that a plan speaks of."""
    hits = [*plan.schedule.hits, *(hit for branch in plan.branches for hit in (*branch.fire, *branch.drop))]
    return {*(fault.point for fault in plan.faults), *(hit.point for hit in hits), *plan.schedule.points}


def default_action(point: FaultPoint) -> Action | None:
    """What a point does where the plan does not say: the one errno that it can fail with, or nothing."""
    return FailErrno(point.errnos[0]) if len(point.errnos) == 1 else None


def _planned(plan: plan_pb2.Plan, fault: plan_pb2.PlannedFault, nr: int, seed: int) -> PlannedArm:
    path = f"faults[{nr}]"
    attributes = attributes_from_proto(f"{path}.attributes", fault.attributes)
    own = attributes.seed or subseed(seed, f"fault/{fault.name}")
    armed = ArmedFault(
        name=fault.name,
        point=fault.point,
        action=_action(fault.point, fault, f"{path}.action"),
        owner=plan.name,
        selector=_picked(plan, fault, own),
        attributes=replace(attributes, seed=own),
        window=window_from_proto(f"{path}.window", fault.window) if fault.HasField("window") else Window(),
        gate_ppm=fault.gate_ppm if fault.HasField("gate_ppm") else PPM,
    )
    phases = frozenset(_PHASE_NAMES[each] for each in fault.phases) or frozenset({"chaos"})
    return PlannedArm(armed, phases)


def _scheduled(hit: plan_pb2.ScheduledHit, nr: int) -> PlannedArm:
    """Exactly this hit, whenever it comes."""
    armed = ArmedFault(
        name=f"hit-{nr + 1}",
        point=hit.point,
        action=_action(hit.point, hit, f"schedule.hits[{nr}].action"),
        selector=Selector(among=(hit.entity,)),
        attributes=FaultAttributes(fail_nth=hit.hit),
    )
    return PlannedArm(armed, frozenset(PHASES))


def _action(point: str, holder: plan_pb2.PlannedFault | plan_pb2.ScheduledHit, path: str) -> Action:
    if holder.HasField("action"):
        return action_from_proto(path, holder.action)
    action = default_action(FAULT_POINTS[point])
    assert action is not None, "a checked plan says what happens at a point that could do one thing or another"
    return action


# -- picking -----------------------------------------------------------------------------------------------------------


def _picked(plan: plan_pb2.Plan, fault: plan_pb2.PlannedFault, seed: int) -> Selector:
    """The scope, narrowed to those that were picked.

    At a link it is nodes that are picked, and what they are cut off from is the rest: links between two of them, or
    between two of the others, are left alone.
    """
    selector = selector_from_proto(fault.scope)
    if fault.pick in (plan_pb2.PICK_UNSPECIFIED, plan_pb2.PICK_ALL):
        return selector
    if FAULT_POINTS[fault.point].error is ErrorClass.MESSAGE and fault.point.startswith("link."):
        side = set(pick(nodes(plan), fault.pick, fault.percent, seed))
        chosen = [link for link in links(plan) if len(side.intersection(link.split("->"))) == 1]
        chosen = [link for link in chosen if Selector(entity=selector.entity, among=selector.among).fits(_named(link))]
    else:
        choice = entities(plan, fault.point) or []
        fitting = [name for name in choice if Selector(entity=selector.entity, among=selector.among).fits(_named(name))]
        chosen = pick(fitting, fault.pick, fault.percent, seed)
    return Selector(
        vm=selector.vm,
        vcpu=selector.vcpu,
        trigger=selector.trigger,
        xfeatures=selector.xfeatures,
        among=tuple(chosen) or ("",),
    )


def _named(entity: str) -> Hit:
    return Hit(point="", entity=entity)


def pick(names: list[str], how: int, percent: int, seed: int) -> list[str]:
    """Choose from ``names``, in their order; each has its own draw, so one that is added moves few."""
    count = _how_many(len(names), how, percent)
    drawn = sorted(names, key=lambda name: (draw64(seed, "pick", name, 0), name))
    chosen = set(drawn[:count])
    return [name for name in names if name in chosen]


def _how_many(there: int, how: int, percent: int) -> int:
    match how:
        case plan_pb2.PICK_ONE:
            return min(there, 1)
        case plan_pb2.PICK_MINORITY:
            return max(min(there, 1), (there - 1) // 2)
        case plan_pb2.PICK_MAJORITY:
            return there // 2 + 1 if there else 0
        case plan_pb2.PICK_PERCENT:
            return -(-there * percent // 100)
        case _:
            return there
