"""Faults."""

from __future__ import annotations

import re
from typing import Final

from fpstate.fault.v1 import fault_pb2

from fault_lab.injection.table import ArmedFault, FaultAttributeError, FaultAttributes
from host_agent.commands import ArmFault
from host_agent.service.errors import field_invalid
from host_agent.service.translate.fields import request_id, text, vcpu_name, vm_name

_POINT: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
_ERRNO_MAX: Final = 4095


def arm_fault_from_proto(request: fault_pb2.ArmFaultRequest) -> ArmFault:
    """Read ArmFaultRequest."""
    fault = request.fault
    for name in ("name", "hits", "fired"):
        if getattr(fault, name):
            raise field_invalid(f"fault.{name}", "nothing: it is output only", getattr(fault, name))
    if fault.HasField("lease"):
        raise field_invalid("fault.lease", "nothing: this release keeps a fault until it is disarmed", "a duration")
    scope = fault.scope
    return ArmFault(
        point=_point(fault.point),
        errno=_errno(fault.action),
        vm=vm_name("fault.scope.vm", scope.vm) if scope.vm else "",
        vcpu=vcpu_name("fault.scope.vcpu", scope.vcpu) if scope.vcpu else "",
        owner=text("fault.scope.owner", scope.owner, longest=128),
        attributes=_attributes(fault.attributes),
        request_id=request_id(request.request_id),
    )


def _point(point: str) -> str:
    """A name that a point can have; whether the host has it is the machine's to say."""
    if not _POINT.fullmatch(point) or len(point) > 128:
        raise field_invalid("fault.point", "lower-case words joined by dots, 1 to 128 characters", point)
    return point


def _errno(action: fault_pb2.FaultAction) -> int:
    if action.WhichOneof("kind") != "errno_action":
        raise field_invalid("fault.action", "errno_action", "none")
    number = action.errno_action.errno_value
    if not 1 <= number <= _ERRNO_MAX:
        raise field_invalid("fault.action.errno_action.errno_value", f"1..{_ERRNO_MAX}", number)
    return number


def _attributes(message: fault_pb2.FaultAttributes) -> FaultAttributes:
    """Absent ones have the kernel's defaults; interval 0 means each, as 1 does."""
    if message.HasField("fail_nth") and message.fail_nth == 0:
        raise field_invalid("fault.attributes.fail_nth", "1 or more", 0)
    default = FaultAttributes()
    try:
        return FaultAttributes(
            probability_ppm=(
                message.probability_ppm if message.HasField("probability_ppm") else default.probability_ppm
            ),
            interval=message.interval or 1,
            times=message.times if message.HasField("times") else default.times,
            space=message.space,
            fail_nth=message.fail_nth,
            seed=message.seed,
        )
    except FaultAttributeError as error:
        raise field_invalid(f"fault.attributes.{error.field}", error.expected, error.got) from error


def fault_to_proto(fault: ArmedFault) -> fault_pb2.Fault:
    """A fault with its counts; ``times`` and ``space`` are what is left of them."""
    attributes = fault.attributes
    return fault_pb2.Fault(
        name=fault.name,
        point=fault.point,
        scope=fault_pb2.FaultScope(vm=fault.vm, vcpu=fault.vcpu, owner=fault.owner),
        attributes=fault_pb2.FaultAttributes(
            probability_ppm=attributes.probability_ppm,
            interval=attributes.interval,
            times=attributes.times,
            space=attributes.space,
            fail_nth=attributes.fail_nth or None,
            seed=attributes.seed,
        ),
        action=fault_pb2.FaultAction(errno_action=fault_pb2.ErrnoAction(errno_value=fault.errno)),
        hits=fault.hits,
        fired=fault.fired,
    )
