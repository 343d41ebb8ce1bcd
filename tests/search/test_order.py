"""Another order than that of time: what it may change, and what it never does."""

from __future__ import annotations

from collections import defaultdict

import pytest
from fpstate.fault.v1 import plan_pb2

from fault_lab.sim.agenda import Entry
from fault_lab.sim.run import simulate
from fault_lab.sim.schedule import as_schedule
from fault_lab.sim.world import World
from tests.search.plans import plan_of

SLACK_NS = 50_000_000


def stormy(changes: int = 5) -> plan_pb2.Plan:
    """The storm in an order by priority, in which anything may be 50 ms late."""
    plan = plan_of("sim/storm.yaml")
    plan.order.slack.FromNanoseconds(SLACK_NS)
    plan.order.priorities.changes, plan.order.priorities.steps = changes, 1000
    return plan


@pytest.mark.parametrize("seed", range(3))
def test_an_order_keeps_lanes_and_slack(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time never goes back, a lane keeps its order, nothing is late by more than the slack, or without a lane."""
    real = World.step
    lanes: dict[str, list[tuple[int, int]]] = defaultdict(list)
    late: list[int] = []

    def step(world: World, entry: Entry) -> None:
        before = world.now_ns
        real(world, entry)
        assert world.now_ns == max(before, entry.at_ns)
        late.append(world.now_ns - entry.at_ns)
        assert late[-1] <= (SLACK_NS if entry.lane else 0), (entry.lane, entry.what)
        if entry.lane:
            lanes[entry.lane].append((entry.at_ns, entry.nr))

    monkeypatch.setattr(World, "step", step)
    result = simulate(stormy(), seed)
    assert result.violation is None
    assert len(result.deviations) > 20
    assert max(late) > SLACK_NS // 2
    assert all(taken == sorted(taken) for taken in lanes.values())


def test_deviations_are_the_order() -> None:
    """Written out, a run by priority is the same run: the same hits, the same deviations."""
    plan = plan_of("search/wakeup.yaml")
    plan.order.priorities.changes, plan.order.priorities.steps = 2, 100
    result = simulate(plan, 7)
    written = as_schedule(plan, 7, result.fired, result.deviations)
    again = simulate(written)
    assert not written.order.HasField("priorities")
    assert again.deviations == result.deviations
    assert (again.steps, again.t_ns) == (result.steps, result.t_ns)


def test_no_priorities_and_no_deviations_are_the_order_of_time() -> None:
    """An order that says nothing changes nothing."""
    plan = plan_of("sim/first.yaml")
    ordered = plan_pb2.Plan()
    ordered.CopyFrom(plan)
    ordered.order.slack.FromSeconds(1)
    assert simulate(ordered).digest == simulate(plan).digest
