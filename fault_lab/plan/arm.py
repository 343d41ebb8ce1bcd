"""A plan's faults for a host that is alive: the requests that arm them."""

from __future__ import annotations

from fpstate.fault.v1 import fault_pb2, plan_pb2

from fault_lab.injection.draw import PPM
from fault_lab.injection.hit import Window
from fault_lab.injection.points import FAULT_POINTS, Seat
from fault_lab.plan.resolve import PlannedArm, planned_faults
from fault_lab.wire.action import action_to_proto
from fault_lab.wire.duration import duration
from fault_lab.wire.fault import attributes_to_proto, scope_to_proto, window_to_proto


def arm_requests(
    plan: plan_pb2.Plan, seed: int | None = None, *, phase: str = "chaos", lease_ns: int = 0
) -> dict[str, fault_pb2.ArmFaultRequest]:
    """Return what arms the faults of ``phase`` at a host's own points, by their names in the plan.

    Their owner is the plan's name, so ``ResetFaults`` of it heals, and a lease does where nobody is left to ask for it.
    Seeds and picks are those that the same seed has in a simulated run. Points of the world are the runner's.
    """
    planned = planned_faults(plan, plan.seed if seed is None else seed)
    return {each.fault.name: arm_request(each, lease_ns) for each in planned if phase in each.phases and is_hosts(each)}


def is_hosts(planned: PlannedArm) -> bool:
    """Whether a host is asked itself, and not whoever runs the plan."""
    return FAULT_POINTS[planned.fault.point].seat is Seat.HOST


def arm_request(
    planned: PlannedArm, lease_ns: int = 0, *, since_ns: int = 0, since_events: int = 0
) -> fault_pb2.ArmFaultRequest:
    """Return what arms a fault so long, and so many events, after the beginning that the plan's windows count from."""
    fault, window = planned.fault, planned.fault.window.later(since_ns, since_events)
    made = fault_pb2.Fault(
        point=fault.point,
        scope=scope_to_proto(fault.selector, fault.owner),
        attributes=attributes_to_proto(fault.attributes),
        action=action_to_proto(fault.action),
        lease=duration(lease_ns) if lease_ns else None,
        window=window_to_proto(window) if window != Window() else None,
        gate_ppm=fault.gate_ppm if fault.gate_ppm != PPM else None,
    )
    return fault_pb2.ArmFaultRequest(fault=made)
