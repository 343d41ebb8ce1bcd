"""A fault in its short forms, as the command that arms it."""

from __future__ import annotations

from typing import Any

from fpstate.fault.v1 import fault_pb2

from fault_lab.injection.action import Action
from fault_lab.injection.attributes import FaultAttributes, parse_attributes
from fault_lab.injection.hit import Selector
from fault_lab.injection.points import FAULT_POINTS
from fault_lab.plan.resolve import default_action
from fault_lab.plan.short import ShortError, fill_short, percent_ppm
from fault_lab.wire.action import action_from_proto
from host_agent.commands import ArmFault


def arming(
    point: str,
    action: str = "",
    *,
    attributes: str = "",
    probability: str = "",
    vm: str = "",
    vcpu: str = "",
    owner: str = "test",
    **rest: Any,  # noqa: ANN401 -- as FaultAttributes has them
) -> ArmFault:
    """The command: ``arming("fpstate.realloc.alloc", "ENOMEM", fail_nth=1, vcpu="vms/a/vcpus/0")``.

    ``attributes`` is the kernel's line ``interval,probability,space,times``; ``probability`` a percentage, ``30%``; the
    rest are attributes by name. Raises ``ValueError`` with the name of the field.
    """
    if point not in FAULT_POINTS:
        raise ValueError(f"point: expected one of {', '.join(FAULT_POINTS)}, got {point!r}")
    does = _action(action) if action else default_action(FAULT_POINTS[point])
    if does is None:
        raise ValueError(f"action: expected one, as {point} can fail in several ways")
    if attributes and (rest or probability):
        raise ValueError("attributes: expected the line or attributes by name, got both")
    if probability:
        rest["probability_ppm"] = percent_ppm(probability)
    return ArmFault(
        point=point,
        action=does,
        owner=owner,
        selector=Selector(vm=vm, vcpu=vcpu),
        attributes=parse_attributes(attributes) if attributes else FaultAttributes(**rest),
    )


def _action(text: str) -> Action:
    made = fault_pb2.FaultAction()
    try:
        fill_short(made, text)
    except ShortError as error:
        raise ValueError(f"action: expected {error}, got {text!r}") from None
    return action_from_proto("action", made)
