"""Whether a plan can be run on live processes, and if not, what stands against it: known before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.plan.problem import PlanError, Problem

#: Points that nothing outside of the simulator can reach, and why.
_NOT_LIVE: Final = {"node.clock": "a process has the system's clock, which is everybody's"}


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
    for field in ("tasks", "preempt_ppm", "migrations"):
        if getattr(plan.workload, field):
            yield Problem(f"workload.{field}", "nothing, as only the simulator plays it", "some")
    for nr, host in enumerate(plan.topology.hosts):
        if host.session_credits:
            yield Problem(f"topology.hosts[{nr}].session_credits", "nothing, as only the simulator has it", "some")
    for nr, vm in enumerate(plan.topology.vms):
        if vm.HasField("attach"):
            yield Problem(f"topology.vms[{nr}].attach", "nothing, as only the simulator plays it", "some")
    ephemeral = all(host.ephemeral for host in plan.topology.hosts)
    points = [(f"faults[{nr}].point", fault.name, fault.point) for nr, fault in enumerate(plan.faults)]
    points += [(f"schedule.hits[{nr}].point", f"hit {nr + 1}", hit.point) for nr, hit in enumerate(plan.schedule.hits)]
    for path, name, point in points:
        why = _NOT_LIVE.get(point, "")
        if point.startswith("journal.") and ephemeral:
            why = "no host of this plan has a journal"
        if why:
            yield Problem(path, f"a point that can be reached live for {name}", f"{point}: {why}")
