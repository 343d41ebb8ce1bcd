"""Whether a plan can be run on live processes, and if not, what stands against it: known before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.hit import matches
from fault_lab.plan.entities import nodes
from fault_lab.plan.problem import PlanError, Problem

_NOT_THEIRS: Final = "has the system's clock, which is everybody's; a host's is its own"


def check_possible(plan: plan_pb2.Plan, source: str) -> None:
    """Raises ``PlanError`` with everything that cannot be had live."""
    found = list(_problems(plan))
    if found:
        raise PlanError(source, found)


def without_faults(plan: plan_pb2.Plan, names: list[str]) -> plan_pb2.Plan:
    """The plan without some of its faults, and without asking whether they fired. Raises ``ValueError`` for a name."""
    known = [fault.name for fault in plan.faults]
    for name in names:
        if name not in known:
            raise ValueError(f"--without: expected one of {', '.join(known) or 'no fault at all'}, got {name!r}")
    left = plan_pb2.Plan()
    left.CopyFrom(plan)
    del left.faults[:]
    left.faults.extend(fault for fault in plan.faults if fault.name not in names)
    unasked = {f"fired:{name}" for name in names}
    left.checks.sometimes[:] = [name for name in plan.checks.sometimes if name not in unasked]
    return left


def _problems(plan: plan_pb2.Plan) -> Iterator[Problem]:
    yield from _simulated_only(plan)
    ephemeral = all(host.ephemeral for host in plan.topology.hosts)
    for path, name, where in _faults(plan):
        why = ""
        if where.point.startswith("journal.") and ephemeral:
            why = "no host of this plan has a journal"
        if where.point == "node.clock":
            why = _clock(plan, where)
        if why:
            yield Problem(f"{path}.point", f"a point that can be reached live for {name}", f"{where.point}: {why}")


def _simulated_only(plan: plan_pb2.Plan) -> Iterator[Problem]:
    fields = [(f"workload.{field}", getattr(plan.workload, field)) for field in ("tasks", "preempt_ppm", "migrations")]
    hosts, machines = plan.topology.hosts, plan.topology.vms
    fields += [(f"topology.hosts[{nr}].session_credits", host.session_credits) for nr, host in enumerate(hosts)]
    fields += [(f"topology.vms[{nr}].attach", vm.HasField("attach")) for nr, vm in enumerate(machines)]
    for path, there in fields:
        if there:
            yield Problem(path, "nothing, as only the simulator plays it", "some")


def _faults(plan: plan_pb2.Plan) -> Iterator[tuple[str, str, plan_pb2.ScheduledHit]]:
    """Path, name, and where and what, of every fault and of every hit of a schedule; an entity may be a pattern."""
    for nr, fault in enumerate(plan.faults):
        entity = fault.scope.entity
        yield f"faults[{nr}]", fault.name, plan_pb2.ScheduledHit(point=fault.point, entity=entity, action=fault.action)
    for nr, hit in enumerate(plan.schedule.hits):
        yield f"schedule.hits[{nr}]", f"hit {nr + 1}", hit


def _clock(plan: plan_pb2.Plan, where: plan_pb2.ScheduledHit) -> str:
    """Why these clocks cannot be wrong; empty where they can."""
    hosts = {host.name for host in plan.topology.hosts}
    others = [node for node in nodes(plan) if node not in hosts and matches(where.entity or "*", node)]
    if others:
        return f"{others[0]} {_NOT_THEIRS}"
    return "a living clock never goes back" if where.action.clock_action.jump.ToNanoseconds() < 0 else ""
