"""Faults of a plan that can never fire, or hardly ever: the mistake that a run without a failure would hide."""

from __future__ import annotations

from collections.abc import Iterator

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.points import FAULT_POINTS, ErrorClass
from fault_lab.plan.problem import Problem
from fault_lab.wire.fault import attributes_from_proto

#: The label of a VM whose hits pass the task filter.
MAKE_IT_FAIL = "make-it-fail"
#: A container with tile data takes 10,816 bytes: three pages, of order 2.
_ORDER_OF_THE_LARGEST = 2


def warnings(plan: plan_pb2.Plan) -> list[Problem]:
    """Return what keeps faults of a checked plan from firing; ``expected`` says what would let them."""
    found: list[Problem] = []
    marked = any(MAKE_IT_FAIL in vm.labels for vm in plan.topology.vms)
    for nr, fault in enumerate(plan.faults):
        path = f"faults[{nr}]"
        attributes = attributes_from_proto(f"{path}.attributes", fault.attributes)
        found += _never(attributes, f"{path}.attributes", marked=marked)
        if FAULT_POINTS[fault.point].error is ErrorClass.NULL:
            found += _masked(attributes, f"{path}.attributes")
        if fault.HasField("gate_ppm") and not fault.gate_ppm:
            found.append(Problem(f"{path}.gate_ppm", "more than 0, or no run has the fault", "0"))
    return found


def _never(attributes: FaultAttributes, path: str, *, marked: bool) -> Iterator[Problem]:
    if not attributes.stacktrace_depth and attributes.require:
        yield Problem(f"{path}.stacktrace_depth", "1 or more, or nothing is ever found of `require`", "0")
    if attributes.fail_nth:
        return
    if attributes.probability_ppm == 0:
        yield Problem(f"{path}.probability_ppm", "more than 0, or it never fires", "0")
    if attributes.times == 0:
        yield Problem(f"{path}.times", "-1 or more than 0, or it never fires", "0")
    if attributes.task_filter and not marked:
        yield Problem(f"{path}.task_filter", f"a VM with the label {MAKE_IT_FAIL}, or nothing passes", "none")


def _masked(attributes: FaultAttributes, path: str) -> Iterator[Problem]:
    """What a kernel's defaults hide as well. Source: mm/fail_page_alloc.c, __should_fail_alloc_page()."""
    for name in ("ignore_gfp_wait", "ignore_gfp_highmem"):
        if getattr(attributes, name):
            yield Problem(f"{path}.{name}", "false: every container may sleep and lie in high memory", "true")
    if attributes.min_order > _ORDER_OF_THE_LARGEST:
        expected = f"{_ORDER_OF_THE_LARGEST} or less, the order of the largest container"
        yield Problem(f"{path}.min_order", expected, str(attributes.min_order))
