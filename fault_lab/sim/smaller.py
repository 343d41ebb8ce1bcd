"""Plans that are a little smaller than one that fails: what shrinking tries, one change at a time.

    weaker      kill > stand still; a broken frame > lost > late; copies, overtaking > late; a status > late
    fewer       VMs, controllers, readers, vCPUs, rounds, events, lines of a script, links, points that are asked
    rounder     times left out, or of one digit

What a change leaves without a meaning goes with it: the hits of a VM that is gone, its controller, its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from fpstate.fault.v1 import plan_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

import fpstated
from fault_lab.injection.action import (
    Action,
    Clock,
    Corrupt,
    Delay,
    Drop,
    Duplicate,
    FailStatus,
    Hold,
    Kill,
    Pause,
    Reorder,
)
from fault_lab.injection.hit import matches
from fault_lab.plan.entities import entities, nodes, vcpus
from fault_lab.wire.action import action_from_proto, action_to_proto
from fault_lab.wire.duration import NS_PER_S, duration

Plan = plan_pb2.Plan
Plans = Iterator[plan_pb2.Plan]
_LATE: Final = Delay(1_000_000, 1_000_000)


def weaker(plan: Plan) -> Plans:
    """One hit does something less bad."""
    for nr, hit in enumerate(plan.schedule.hits):
        if hit.HasField("action"):
            for action in _weaker(action_from_proto("action", hit.action)):
                made = _copy(plan)
                made.schedule.hits[nr].action.CopyFrom(action_to_proto(action))
                yield made


def _weaker(action: Action) -> tuple[Action, ...]:
    match action:
        case Kill(restart_ns=None):
            return Pause(NS_PER_S), Kill(NS_PER_S)
        case Kill(restart_ns=ns):
            return (Pause(ns or NS_PER_S),)
        case Corrupt():
            return _LATE, Drop()
        case Duplicate(copies=copies) if copies > 1:
            return _LATE, Duplicate()
        case Reorder(depth=depth) if depth > 1:
            return _LATE, Reorder()
        case Drop() | Hold() | FailStatus() | Duplicate() | Reorder():
            return (_LATE,)
        case Clock(jump_ns=jump, drift_ppm=drift) if jump and drift:
            return Clock(jump, 0), Clock(0, drift)
        case _:
            return ()


# -- fewer -------------------------------------------------------------------------------------------------------------


def fewer(plan: Plan) -> Plans:
    """One thing less is there, or is done."""
    there = plan.topology
    yield from _without_each(plan, lambda made: made.topology.vms, least=1)
    yield from _without_each(plan, lambda made: made.topology.controllers)
    yield from _without_each(plan, lambda made: made.topology.hosts, least=1)
    yield from _without_each(plan, lambda made: made.topology.links)
    yield from _without_each(plan, lambda made: made.workload.guests)
    yield from _without_each(plan, lambda made: made.workload.readers)
    yield from _without_each(plan, lambda made: made.schedule.points)
    for nr, vm in enumerate(there.vms):
        for count in _less(vm.vcpus):
            made = _copy(plan)
            made.topology.vms[nr].vcpus = count
            yield _pruned(made)
    for nr in range(len(plan.workload.guests)):
        yield from _less_to_do(plan, nr)


def _less_to_do(plan: Plan, nr: int) -> Plans:
    guest = plan.workload.guests[nr]
    for count in _less(guest.rounds):
        made = _copy(plan)
        made.workload.guests[nr].rounds = count
        yield made
    for count in _less(guest.random.events):
        made = _copy(plan)
        made.workload.guests[nr].random.events = count
        yield made
    text = _mix(guest.mix) if guest.mix else guest.script
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    size = len(lines)
    while size:
        for start in range(0, len(lines), size):
            made = _copy(plan)
            rest = [*lines[:start], *lines[start + size :]]
            made.workload.guests[nr].script = "".join(f"{line}\n" for line in rest)
            yield made
        size //= 2


def _mix(name: str) -> str:
    return (Path(fpstated.__file__).parent / "mix" / f"{name}.txt").read_text(encoding="utf-8")


def _less(count: int) -> list[int]:
    """Smaller numbers, the smallest first; 0 and 1 are the least there is."""
    return list(dict.fromkeys(each for each in (1, count // 2, count - 1) if 1 <= each < count))


def _without_each(plan: Plan, rows: Callable[[Plan], Any], *, least: int = 0) -> Plans:
    count = len(rows(plan))
    for nr in reversed(range(count if count > least else 0)):
        made = _copy(plan)
        del rows(made)[nr]
        yield _pruned(made)


def _pruned(plan: Plan) -> Plan:
    """Take out what speaks of somebody who is not there any more."""
    there = plan.topology
    hosts, vms = {host.name for host in there.hosts}, {vm.name for vm in there.vms}
    _keep(there.vms, lambda vm: not vm.host or vm.host in hosts)
    _keep(there.controllers, lambda each: (not each.vm or each.vm in vms) and (not each.host or each.host in hosts))
    _keep(plan.workload.readers, lambda reader: not reader.host or reader.host in hosts)
    names = nodes(plan)
    ends = ("from", "to")
    _keep(there.links, lambda link: all(any(matches(getattr(link, end), name) for name in names) for end in ends))
    all_vcpus = vcpus(plan)
    for rows in (plan.workload.guests, plan.workload.readers):
        _keep(rows, lambda row: any(matches(row.vcpu or "*", vcpu) for vcpu in all_vcpus))
    _keep(plan.schedule.hits, lambda hit: _is_there(plan, hit))
    return plan


def _is_there(plan: Plan, hit: plan_pb2.ScheduledHit) -> bool:
    choice = entities(plan, hit.point)
    return choice is None or hit.entity in choice


def _keep(rows: Any, wanted: Callable[[Any], bool]) -> None:  # noqa: ANN401 -- a repeated field of any message
    kept = [row for row in rows if wanted(row)]
    if len(kept) < len(rows):
        del rows[:]
        rows.extend(kept)


# -- rounder -----------------------------------------------------------------------------------------------------------


def rounder(plan: Plan) -> Plans:
    """One time is not said, or is a rounder number."""
    made = _copy(plan)
    made.topology.ClearField("link_default")
    yield made
    for name in ("budget", "phases", "checks"):
        made = _copy(plan)
        made.ClearField(name)
        yield made
    for nr in range(len(plan.workload.guests)):
        made = _copy(plan)
        made.workload.guests[nr].ClearField("think_time")
        yield made
    for nr in range(len(list(_times(plan)))):
        made = _copy(plan)
        holder, name = list(_times(made))[nr]
        ns = _ns(getattr(holder, name))
        holder.ClearField(name)
        yield made
        round_ns = ns // (power := 10 ** (len(str(abs(ns))) - 1)) * power
        if 0 < round_ns != ns:
            made = _copy(plan)
            holder, name = list(_times(made))[nr]
            getattr(holder, name).CopyFrom(duration(round_ns))
            yield made


def _times(message: Message) -> Iterator[tuple[Message, str]]:
    """Every duration in a plan, as the message that has it and the name of its field."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for each in value if field.is_repeated else (value,):
            if isinstance(each, Duration):
                yield message, field.name
            else:
                yield from _times(each)


def _ns(value: Duration) -> int:
    return value.seconds * NS_PER_S + value.nanos


def _copy(plan: Plan) -> Plan:
    made = plan_pb2.Plan()
    made.CopyFrom(plan)
    return made
