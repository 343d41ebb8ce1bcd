"""A swizzle of a plan: which links are held when, in a run, in a schedule of it, and what is refused."""

from __future__ import annotations

import json

import pytest
from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.action import Hold
from fault_lab.plan.load import load_plan
from fault_lab.plan.problem import PlanError
from fault_lab.plan.resolve import planned_faults
from fault_lab.plans import find_plan
from fault_lab.sim.run import RunResult, simulate
from fault_lab.sim.schedule import as_schedule

S = 1_000_000_000
CLOG = load_plan(find_plan("swizzle-clog").read_text(encoding="utf-8"), "swizzle-clog")


def held(result: RunResult, state: str) -> list[str]:
    """The links that were held, or carried again, in order."""
    records = [json.loads(line) for line in result.lines]
    return [each["link"] for each in records if each["type"] == "link" and each["state"] == state]


def plan_of(fault: str) -> plan_pb2.Plan:
    """A small plan with this fault."""
    return load_plan(
        "{api_version: fpstate.fault.v1, name: small, topology: {hosts: [{name: host}], vms: [{name: a}, {name: b}]},"
        f" faults: [{{name: clog, {fault}}}]}}",
        "plan",
    )


def test_each_link_is_held_in_the_first_half_and_let_go_in_the_second() -> None:
    """One fault a link, ordinary holds, with a window of its own; every link of the scope."""
    plan = plan_of('point: link.message, scope: {entity: "vms/*"}, window: {after: 1s}, swizzle: 4s, action: hold')
    faults = [each.fault for each in planned_faults(plan, 5)]
    assert [fault.name for fault in faults] == ["clog@vms/a->host", "clog@vms/b->host"]
    for fault in faults:
        assert fault.window.until_ns is not None
        assert 1 * S <= fault.window.after_ns <= 3 * S < fault.window.until_ns <= 5 * S + 1
        assert fault.action == Hold(until_ns=fault.window.until_ns)
        assert fault.attributes.times == 1


def test_links_carry_again_in_another_order() -> None:
    """In some run; and each that was held is let go once."""
    orders = []
    for seed in range(4):
        result = simulate(CLOG, seed)
        assert result.violation is None, f"fpstated sim run swizzle-clog --seed {seed}"
        stopped, carried = held(result, "held"), held(result, "carries")
        assert sorted(stopped) == sorted(set(stopped)) == sorted(carried)
        assert len(stopped) > 1
        assert {"no-memory", "clog"} >= {each.fault for each in result.fired}
        orders.append(stopped == carried)
    assert not all(orders)


def test_its_schedule_is_the_same_run() -> None:
    """Written out it is holds of so many nanoseconds, at hits of links."""
    result = simulate(CLOG, 2)
    schedule = simulate(as_schedule(CLOG, 2, result.fired))
    assert held(schedule, "held") == held(result, "held")
    assert held(schedule, "carries") == held(result, "carries")


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (
            "point: node.run, swizzle: 4s, action: kill",
            "faults[0].swizzle: expected link.message, whose links are held",
        ),
        ("point: link.message, swizzle: 4s, action: drop", "faults[0].action: expected hold without a duration"),
        ("point: link.message, swizzle: 4s, action: {hold: 1s}", "faults[0].action: expected hold without a duration"),
        ("point: link.message, swizzle: 0s, action: hold", "faults[0].swizzle: expected"),
    ],
)
def test_what_is_no_swizzle_is_refused(fault: str, complaint: str) -> None:
    """Each with its field."""
    with pytest.raises(PlanError) as error:
        plan_of(fault)
    assert complaint in str(error.value)
