"""Links that are held one by one and let go one by one in another order: one fault of a plan is one a link in its run.

Each is an ordinary hold with a window and an end of its own, so schedules, shrinking and live runs know nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.action import Hold
from fault_lab.injection.draw import draw_between
from fault_lab.injection.hit import Hit, Selector, Window
from fault_lab.plan.entities import links
from fault_lab.wire.duration import duration_ns

if TYPE_CHECKING:
    from fault_lab.plan.resolve import PlannedArm

#: Between the name of a fault in its plan and that of the link.
_AT: Final = "@"


def plan_name(fault: str) -> str:
    """What a fault of a run is called in its plan."""
    return fault.partition(_AT)[0]


def swizzled(plan: plan_pb2.Plan, fault: plan_pb2.PlannedFault, planned: PlannedArm) -> Iterator[PlannedArm]:
    """The fault as it is; or for each of its links one, which holds it from a drawn moment to another."""
    if not fault.HasField("swizzle"):
        yield planned
        return
    armed = planned.fault
    begin_ns, span_ns = armed.window.after_ns, duration_ns("swizzle", fault.swizzle)
    half_ns = span_ns // 2
    for link in links(plan):
        if not armed.selector.fits(Hit(point=armed.point, entity=link)):
            continue
        seed = armed.attributes.seed
        from_ns = begin_ns + draw_between(seed, "held", link, 0, low=0, high=half_ns)
        until_ns = begin_ns + draw_between(seed, "let-go", link, 0, low=half_ns + 1, high=span_ns + 1)
        held = replace(
            armed,
            name=f"{armed.name}{_AT}{link}",
            action=Hold(until_ns=until_ns),
            selector=Selector(among=(link,)),
            attributes=replace(armed.attributes, times=1),
            window=Window(after_ns=from_ns, until_ns=until_ns),
        )
        yield replace(planned, fault=held)
