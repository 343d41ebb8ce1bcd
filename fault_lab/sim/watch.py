"""Which hits a run meets, whether or not anything is armed there: where a fault could be placed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.hit import Hit
from fault_lab.injection.table import ArmedFault
from fault_lab.plan.numbered import Fired
from fault_lab.sim.faults import WorldFaults
from fault_lab.sim.rules import Violation
from fault_lab.sim.world import World


@dataclass(frozen=True, slots=True)
class Met:
    """One hit of a point of the world: whose, of what, and which of its entity's hits of that point it was."""

    point: str
    entity: str
    trigger: str
    number: int


class _Watching(WorldFaults):
    """The faults of a run that remember every hit of the world's points."""

    def __init__(self, plan: plan_pb2.Plan, seed: int) -> None:
        super().__init__(plan, seed)
        self.met: list[Met] = []

    def hit(
        self, point: str, entity: str, trigger: str, now_ns: int, event: int
    ) -> tuple[Fired, ArmedFault, Hit] | None:
        """As ever, and remembered."""
        found = super().hit(point, entity, trigger, now_ns, event)
        self.met.append(Met(point, entity, trigger, self.count(point, entity)))
        return found


def hits_met(plan: plan_pb2.Plan) -> list[Met]:
    """Run a checked plan once, and return the hits of the world's points in their order."""
    world = World(plan, plan.seed)
    faults = _Watching(plan, plan.seed)
    world.faults = faults
    world.asks_processes()
    with suppress(Violation):
        world.run()
    return faults.met
