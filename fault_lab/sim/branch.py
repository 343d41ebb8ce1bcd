"""Branching: a recorded run goes the same way up to one of its records, and from there another.

    recorded   0 ... 41 42 43 44 ...
    branched         └─ 42' 43' ...          another seed for what is drawn later, a hit that fires, one that does not

The branch is part of the plan (``Plan.branches``), so what comes out is a run like any other: it is recorded, replayed,
shrunk, and branched again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from fpstate.fault.v1 import plan_pb2

from fault_lab.plan.load import check_plan
from fault_lab.plan.reader import read_text
from fault_lab.plan.resolve import named_points
from fault_lab.sim.history import first_divergence
from fault_lab.sim.record import Recorded
from fault_lab.sim.run import RunResult, simulate


class BranchError(ValueError):
    """A branch that cannot be taken: the text says what was expected."""


@dataclass(frozen=True, slots=True)
class Branched:
    """The plan of a branched run, the run, and the number of the first record that is another; None where none is."""

    plan: plan_pb2.Plan
    result: RunResult
    parted: int | None


def branch(
    recorded: Recorded,
    record: int,
    *,
    seed: int | None = None,
    fire: Sequence[plan_pb2.ScheduledHit] = (),
    drop: Sequence[plan_pb2.ScheduledHit] = (),
) -> Branched:
    """Go another way behind ``record``. Raises ``BranchError``, ``RecordError``, ``PlanError``."""
    recorded.check_version()
    lines = list(recorded.lines)
    if not 0 <= record < len(lines):
        raise BranchError(f"record: expected 0..{len(lines) - 1}, the records of the run, got {record}")
    made = plan_pb2.Plan()
    made.CopyFrom(recorded.plan)
    del made.branches[:]
    made.branches.extend(each for each in recorded.plan.branches if each.record < record)
    made.branches.append(plan_pb2.Branch(record=record, seed=seed, fire=fire, drop=drop))
    check_plan(made, "branch")
    _check_asked(recorded.plan, (*fire, *drop))
    _check_fired(lines, drop)
    result = simulate(made, recorded.seed)
    parted = first_divergence(lines, list(result.lines))
    if parted is not None and parted <= record:
        raise BranchError(f"record {parted} is another already: expected hits that come behind record {record}")
    _check_reached(result, fire)
    return Branched(made, result, parted)


def read_hit(text: str, option: str) -> plan_pb2.ScheduledHit:
    """Read ``POINT:ENTITY:HIT`` or ``POINT:ENTITY:HIT:ACTION``; an action is written as in a plan.

    Raises ``BranchError``, and ``PlanError`` for an action that is none.
    """
    parts = text.split(":", 3)
    if len(parts) < 3 or not parts[2].isdecimal():
        raise BranchError(f"{option}: expected POINT:ENTITY:HIT[:ACTION] with the number of the hit, got {text!r}")
    point, entity, hit, *action = parts
    fields = f"point: {json.dumps(point)}, entity: {json.dumps(entity)}, hit: {hit}"
    acts = f", action: {action[0]}" if action else ""
    read = read_text(f"schedule: {{hits: [{{{fields}{acts}}}]}}", option).plan
    return read.schedule.hits[0]


def hit_name(hit: plan_pb2.ScheduledHit) -> str:
    """As it is written on a command line."""
    return f"{hit.point}:{hit.entity}:{hit.hit}"


def _check_asked(plan: plan_pb2.Plan, hits: Sequence[plan_pb2.ScheduledHit]) -> None:
    """A host that is asked at its services has one more command a call: such a run is another from the beginning."""
    asked = named_points(plan)
    for hit in hits:
        if hit.point.startswith("rpc.") and hit.point not in asked:
            raise BranchError(
                f"{hit_name(hit)}: expected a point that the recorded run asks; its plan names no fault there"
            )


def _check_fired(lines: Sequence[str], drop: Sequence[plan_pb2.ScheduledHit]) -> None:
    records = (json.loads(line) for line in lines if '"type":"fault"' in line)
    fired = {(each["point"], each["entity"], each["hit"]) for each in records}
    for hit in drop:
        if (hit.point, hit.entity, hit.hit) not in fired:
            raise BranchError(f"{hit_name(hit)}: expected a hit that fired in the recorded run")


def _check_reached(result: RunResult, fire: Sequence[plan_pb2.ScheduledHit]) -> None:
    fired = {(each.point, each.entity, each.hit) for each in result.fired}
    for hit in fire:
        if (hit.point, hit.entity, hit.hit) not in fired:
            raise BranchError(f"{hit_name(hit)}: expected a hit that the run reaches")
