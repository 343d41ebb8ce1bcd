"""A run as a schedule: the plan without its chances, and instead exactly the hits that fired.

The world is the same, with its latencies drawn from the same seed; only which hits fire is written out. That is the
form that shrinking works on, since one hit can be left out of it and no other moves.
"""

from __future__ import annotations

from collections.abc import Iterable

from fpstate.fault.v1 import plan_pb2

from fault_lab.plan.numbered import Fired
from fault_lab.wire.action import action_to_proto


def as_schedule(plan: plan_pb2.Plan, seed: int, fired: Iterable[Fired]) -> plan_pb2.Plan:
    """Return the plan in which exactly these hits fire, with ``seed`` as its own."""
    made = plan_pb2.Plan()
    made.CopyFrom(plan)
    made.seed = seed
    del made.faults[:]
    made.ClearField("schedule")
    made.ClearField("search")
    # The checks that a fault has fired speak of names, and a hit of a schedule has none.
    kept = [name for name in made.checks.sometimes if not name.startswith("fired:")]
    del made.checks.sometimes[:]
    made.checks.sometimes.extend(kept)
    made.schedule.hits.extend(
        plan_pb2.ScheduledHit(point=each.point, entity=each.entity, hit=each.hit, action=action_to_proto(each.action))
        for each in fired
    )
    return made


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
