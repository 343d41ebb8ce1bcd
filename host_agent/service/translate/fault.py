"""Faults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fpstate.fault.v1 import fault_pb2

from fault_lab.injection.attributes import FaultAttributeError
from fault_lab.injection.draw import PPM
from fault_lab.injection.hit import Hit, Window
from fault_lab.injection.points import HOST_POINTS
from fault_lab.injection.table import ArmedFault
from fault_lab.wire.action import action_from_proto, action_to_proto
from fault_lab.wire.duration import NS_PER_S, duration_ns
from fault_lab.wire.fault import (
    attributes_from_proto,
    attributes_to_proto,
    scope_to_proto,
    selector_from_proto,
    window_from_proto,
    window_to_proto,
)
from host_agent.commands import ArmFault, HitFault
from host_agent.faults import Verdict
from host_agent.service.errors import field_invalid
from host_agent.service.translate.fields import duration, request_id, text, vcpu_name, vm_name

_AMONG_MAX: Final = 100_000
_POINT: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except FaultAttributeError as error:
        raise field_invalid(error.field, error.expected, error.got) from error


def arm_fault_from_proto(request: fault_pb2.ArmFaultRequest) -> ArmFault:
    """Read ArmFaultRequest."""
    fault = request.fault
    for name in ("name", "hits", "fired"):
        if getattr(fault, name):
            raise field_invalid(f"fault.{name}", "nothing: it is output only", getattr(fault, name))
    _check_scope("fault.scope", fault.scope)
    with _refusing():
        return ArmFault(
            point=_point("fault.point", fault.point),
            action=action_from_proto("fault.action", fault.action),
            owner=fault.scope.owner,
            selector=selector_from_proto(fault.scope),
            attributes=attributes_from_proto("fault.attributes", fault.attributes),
            window=window_from_proto("fault.window", fault.window) if fault.HasField("window") else Window(),
            gate_ppm=fault.gate_ppm if fault.HasField("gate_ppm") else PPM,
            lease_ns=_lease_ns(fault),
            request_id=request_id(request.request_id),
        )


def evaluate_from_proto(request: fault_pb2.EvaluateRequest) -> HitFault:
    """Read EvaluateRequest. The host asks at its own points itself."""
    point = _point("point", request.point)
    if point in HOST_POINTS:
        raise field_invalid("point", "a point of the caller's own", point)
    scope = request.scope
    _check_scope("scope", scope)
    hit = Hit(
        point=point,
        entity=scope.entity or scope.vcpu or scope.vm,
        vm=scope.vm,
        vcpu=scope.vcpu,
        trigger=scope.trigger,
        xfeatures=scope.xfeatures,
        size_bytes=request.size,
        trace=(point, scope.trigger) if scope.trigger else (point,),
    )
    return HitFault(hit=hit, owner=scope.owner, request_id=request_id(request.request_id))


def _lease_ns(fault: fault_pb2.Fault) -> int:
    """The lease; one of less than a millisecond is the machine's to refuse, one of nothing is none at all."""
    if not fault.HasField("lease"):
        return 0
    return duration_ns("fault.lease", fault.lease, least=NS_PER_S // 1000)


def _check_scope(path: str, scope: fault_pb2.FaultScope) -> None:
    if scope.vm:
        vm_name(f"{path}.vm", scope.vm)
    if scope.vcpu:
        vcpu_name(f"{path}.vcpu", scope.vcpu)
    for name in ("owner", "entity", "trigger"):
        text(f"{path}.{name}", getattr(scope, name), longest=128)
    if len(scope.among) > _AMONG_MAX:
        raise field_invalid(f"{path}.among", f"at most {_AMONG_MAX} names", len(scope.among))


def _point(path: str, point: str) -> str:
    """A name that a point can have; whether the host has it is the machine's to say."""
    if not _POINT.fullmatch(point) or len(point) > 128:
        raise field_invalid(path, "lower-case words joined by dots, 1 to 128 characters", point)
    return point


def fault_to_proto(fault: ArmedFault) -> fault_pb2.Fault:
    """A fault with its counts; ``times`` and ``space`` are what is left of them."""
    return fault_pb2.Fault(
        name=fault.name,
        point=fault.point,
        scope=scope_to_proto(fault.selector, fault.owner),
        attributes=attributes_to_proto(fault.attributes),
        action=action_to_proto(fault.action),
        lease=duration(fault.lease_ns) if fault.lease_ns else None,
        hits=fault.hits,
        fired=fault.fired,
        window=window_to_proto(fault.window) if fault.window != Window() else None,
        gate_ppm=fault.gate_ppm if fault.gate_ppm != PPM else None,
    )


def hit_to_proto(hit: Hit, owner: str = "") -> fault_pb2.FaultScope:
    """Where a hit was."""
    return fault_pb2.FaultScope(
        vm=hit.vm, vcpu=hit.vcpu, owner=owner, entity=hit.entity, trigger=hit.trigger, xfeatures=hit.xfeatures
    )


def verdict_to_proto(verdict: Verdict, response: fault_pb2.EvaluateResponse) -> None:
    """Fill in what a point is to do."""
    response.fault = verdict.fault
    if verdict.action is not None:
        response.action.CopyFrom(action_to_proto(verdict.action))
        response.errno_value = response.action.errno_action.errno_value
