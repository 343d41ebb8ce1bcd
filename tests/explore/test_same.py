"""Symmetry and reduction leave states out, and nothing that could be found: with and without them, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import replace

import pytest
from fpstate.fault.v1 import plan_pb2

from fault_lab.explore.bounds import Bounds
from fault_lab.explore.run import Explored, explore
from fault_lab.plan.load import load_plan
from fault_lab.plans import find_plan
from tests.sim.mutants import double_decision, epochs_stand_still, stale_epoch

GROWTH = load_plan(find_plan("small-growth").read_text(encoding="utf-8"), "small-growth")
PROCESSES = load_plan(find_plan("small-processes").read_text(encoding="utf-8"), "small-processes")

#: Bounds that are explored whole in about a second each.
WHOLE = [
    pytest.param(GROWTH, Bounds(faults=0), id="growth-0"),
    pytest.param(GROWTH, Bounds(faults=1), id="growth-1"),
    pytest.param(GROWTH, Bounds(faults=1, preemptions=1), id="growth-1-preemptions-1"),
    pytest.param(PROCESSES, Bounds(faults=1, crashes=0), id="processes-messages"),
]


def machines(explored: Explored) -> set[tuple[Hashable, ...]]:
    """What the machines of all states are, without what the rules know of who has heard what."""
    hosts = explored.world.hosts
    return {tuple(part[0] for part in hosts.vcpu_contents(state.host)) for state in explored.space.states}


@pytest.mark.parametrize(("plan", "bounds"), WHOLE)
def test_the_reduction_reaches_the_same_machines(plan: plan_pb2.Plan, bounds: Bounds) -> None:
    """Every machine that some order leads to is one that some order of the reduced search leads to."""
    with_it = explore(plan, replace(bounds, symmetry=False))
    without = explore(plan, replace(bounds, symmetry=False, reduction=False))
    assert (with_it.exhausted, without.exhausted) == (True, True)
    assert with_it.states < without.states
    assert machines(with_it) == machines(without)


@pytest.mark.parametrize(("plan", "bounds"), WHOLE[:3])
def test_symmetry_reaches_the_same_machines_up_to_names(plan: plan_pb2.Plan, bounds: Bounds) -> None:
    """Of two states in which two guests have changed places, one is enough; none of another kind is left out."""
    with_it = explore(plan, bounds)
    without = explore(plan, replace(bounds, symmetry=False))
    assert with_it.states < without.states

    def bags(explored: Explored) -> set[Hashable]:
        return {frozenset(Counter(machine).items()) for machine in machines(explored)}

    assert bags(with_it) == bags(without)


@pytest.mark.parametrize("plant", [double_decision, stale_epoch, epochs_stand_still])
@pytest.mark.parametrize(("plan", "bounds"), [(GROWTH, Bounds(faults=1)), (PROCESSES, Bounds(faults=1))])
def test_the_same_is_found(
    plan: plan_pb2.Plan,
    bounds: Bounds,
    plant: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a planted bug, the same checks fail after the same number of steps, or none does."""
    plant(monkeypatch)

    def found(**how: bool) -> dict[str, str]:
        return {each.check: each.check for each in explore(plan, replace(bounds, **how)).violations}

    assert found() == found(symmetry=False) == found(symmetry=False, reduction=False)
