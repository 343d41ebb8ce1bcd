"""Who is in a plan: the nodes, links, VMs and vCPUs whose hits its faults are about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.points import FAULT_POINTS


def nodes(plan: plan_pb2.Plan) -> list[str]:
    """Hosts, controllers, ``vms/{vm}`` for the guest agent of each VM, and readers, in the order of the plan."""
    there = plan.topology
    hosts, controllers = (each.name for each in there.hosts), (each.name for each in there.controllers)
    readers = (each.name for each in plan.workload.readers)
    movers = (each.name for each in plan.workload.migrations)
    return [*hosts, *controllers, *(f"vms/{vm.name}" for vm in there.vms), *readers, *movers]


def links(plan: plan_pb2.Plan) -> list[str]:
    """``from->to`` for each way between a host and its controllers, guests and readers."""
    there = plan.topology
    first = there.hosts[0].name if there.hosts else ""
    pairs = [(f"vms/{vm.name}", vm.host or first) for vm in there.vms]
    pairs += [(each.name, each.host or first) for each in there.controllers]
    pairs += [(each.name, each.host or first) for each in plan.workload.readers]
    on = {vm.name: vm.host or first for vm in there.vms}
    for each in plan.workload.migrations:
        pairs += [(each.name, on.get(each.vm, first)), (each.name, each.target), (f"vms/{each.vm}", each.target)]
    return [f"{a}->{b}" for pair in pairs for a, b in (pair, pair[::-1])]


def vms(plan: plan_pb2.Plan) -> list[str]:
    """``vms/{vm}``."""
    return [f"vms/{vm.name}" for vm in plan.topology.vms]


def vcpus(plan: plan_pb2.Plan) -> list[str]:
    """``vms/{vm}/vcpus/{index}``."""
    return [f"vms/{vm.name}/vcpus/{index}" for vm in plan.topology.vms for index in range(vm.vcpus or 1)]


#: Whom a scope's entity and a pick choose from, by the first word of a point's ``entity``.
_BY_WORD: Final[dict[str, Callable[[plan_pb2.Plan], list[str]]]] = {
    "node": nodes,
    "link,": links,
    "VM": vms,
    "vCPU": vcpus,
    "vCPU,": vcpus,
}


def entities(plan: plan_pb2.Plan, point: str) -> list[str] | None:
    """Everybody whose hits of ``point`` there can be; None where the plan does not name them, as for methods."""
    known = FAULT_POINTS.get(point)
    find = _BY_WORD.get(known.entity.split()[0]) if known is not None else None
    return find(plan) if find is not None else None
