"""A run as a schedule: the plan without its chances, and instead exactly the hits that fired.

The world is the same, with its latencies drawn from the same seed; only which hits fire is written out. That is the
form that shrinking works on, since one hit can be left out of it and no other moves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.plan.numbered import Fired
from fault_lab.plan.resolve import named_points
from fault_lab.sim.order import Deviation
from fault_lab.wire.action import action_to_proto

#: Points that are asked only where a plan speaks of them.
_ASKED_FOR: Final = ("rpc.", "node.")


def as_schedule(
    plan: plan_pb2.Plan, seed: int, fired: Iterable[Fired], deviations: Iterable[Deviation] = ()
) -> plan_pb2.Plan:
    """Return the plan in which exactly these hits fire, with ``seed`` as its own.

    Of another order than that of time exactly these deviations are left.
    """
    made = with_hits(plan, seed, ())
    del made.schedule.hits[:]
    made.schedule.hits.extend(map(_scheduled, fired))
    _only_seeds(made)
    made.order.ClearField("priorities")
    del made.order.deviations[:]
    made.order.deviations.extend(plan_pb2.Deviation(step=each.step, lane=each.lane) for each in deviations)
    if not made.order.deviations:
        made.ClearField("order")
    return made


def with_hits(plan: plan_pb2.Plan, seed: int, hits: Iterable[Fired]) -> plan_pb2.Plan:
    """Return the plan with ``seed`` as its own, and these hits in place of its faults."""
    made = plan_pb2.Plan()
    made.CopyFrom(plan)
    made.seed = seed
    del made.faults[:]
    made.ClearField("search")
    del made.schedule.points[:]
    made.schedule.points.extend(sorted(point for point in named_points(plan) if point.startswith(_ASKED_FOR)))
    made.schedule.hits.extend(map(_scheduled, hits))
    # The checks that a fault has fired speak of names, and a hit of a schedule has none.
    kept = [name for name in made.checks.sometimes if not name.startswith("fired:")]
    del made.checks.sometimes[:]
    made.checks.sometimes.extend(kept)
    return made


def _scheduled(hit: Fired) -> plan_pb2.ScheduledHit:
    action = action_to_proto(hit.action)
    return plan_pb2.ScheduledHit(point=hit.point, entity=hit.entity, hit=hit.hit, action=action)


def _only_seeds(plan: plan_pb2.Plan) -> None:
    """Leave of branches what they are drawn from: their hits are among those that fired."""
    seeds = [plan_pb2.Branch(record=each.record, seed=each.seed) for each in plan.branches if each.HasField("seed")]
    del plan.branches[:]
    plan.branches.extend(seeds)


def without_faults(plan: plan_pb2.Plan, names: Iterable[str]) -> plan_pb2.Plan:
    """Return the plan without some of its faults, and without the checks that those have fired."""
    gone = set(names)
    made = plan_pb2.Plan()
    made.CopyFrom(plan)
    del made.faults[:]
    made.faults.extend(fault for fault in plan.faults if fault.name not in gone)
    kept = [name for name in plan.checks.sometimes if name.removeprefix("fired:") not in gone]
    del made.checks.sometimes[:]
    made.checks.sometimes.extend(kept)
    return made
