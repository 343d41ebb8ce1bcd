"""What may go wrong in a plan: its faults by point, whose attributes, windows and gates are left aside.

An exploration asks where a fault can fire, and lets it: which hits, and how many, is what the bounds say.
"""

from __future__ import annotations

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.action import Action
from fault_lab.injection.hit import Hit
from fault_lab.injection.table import ArmedFault
from fault_lab.plan.resolve import planned_faults

#: The points that are explored. The others are of what an explored world does not have: a disk, clocks, latencies.
POINTS = frozenset(
    {"fpstate.realloc.alloc", "fpstate.realloc.perm", "link.message", "controller.decide", "node.run"},
)


class Menu:
    """The faults of a plan that are explored."""

    def __init__(self, plan: plan_pb2.Plan) -> None:
        planned = [each.fault for each in planned_faults(plan, plan.seed) if "chaos" in each.phases]
        self.faults = [fault for fault in planned if fault.point in POINTS]
        self._actions: dict[tuple[str, str, str], list[Action]] = {}
        self.may_crash = any(fault.point == "node.run" for fault in self.faults)
        #: Names of the plan's faults that are not.
        self.left_out = sorted(fault.name for fault in planned if fault.point not in POINTS)

    def fits(self, hit: Hit) -> ArmedFault | None:
        """The first fault that could fire at a hit."""
        return next((fault for fault in self.faults if fault.point == hit.point and fault.selector.fits(hit)), None)

    def actions(self, point: str, entity: str, trigger: str = "") -> list[Action]:
        """What could happen at a point of the world, each once, in the order of the plan."""
        found = self._actions.get((point, entity, trigger))
        if found is None:
            hit = Hit(point=point, entity=entity, trigger=trigger, trace=(point, trigger))
            fitting = [fault.action for fault in self.faults if fault.point == point and fault.selector.fits(hit)]
            found = self._actions[point, entity, trigger] = list(dict.fromkeys(fitting))
        return found
