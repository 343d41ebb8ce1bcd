"""Which hits a run meets, whether or not anything is armed there: where a fault could be placed."""

from __future__ import annotations

from dataclasses import dataclass

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.hit import Hit
from fault_lab.injection.points import FAULT_POINTS, Seat
from fault_lab.sim.run import simulate


@dataclass(frozen=True, slots=True)
class Met:
    """One hit of a point of the world: whose, of what, and which of its entity's hits of that point it was."""

    point: str
    entity: str
    trigger: str
    number: int


class _Meeting:
    """A watch that remembers every hit of the world's points."""

    def __init__(self) -> None:
        self.met: list[Met] = []

    def enter(self, phase: str) -> None:
        """A phase makes no difference."""

    def see(self, hit: Hit, number: int) -> None:
        """A point was reached."""
        if FAULT_POINTS[hit.point].seat is not Seat.HOST:
            self.met.append(Met(hit.point, hit.entity, hit.trigger, number))


def hits_met(plan: plan_pb2.Plan) -> list[Met]:
    """Run a checked plan once, and return the hits of the world's points in their order."""
    asked = plan_pb2.Plan()
    asked.CopyFrom(plan)
    asked.checks.skip_linearizability = True
    if "node.run" not in asked.schedule.points:
        asked.schedule.points.append("node.run")  # processes are asked only where a plan speaks of them
    watch = _Meeting()
    simulate(asked, watch=watch)
    return watch.met
