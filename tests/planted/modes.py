"""The ways of searching, by name. What they search with is imported when they are asked: behind the patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fpstate.fault.v1 import plan_pb2

    from fault_lab.explore.run import Explored
    from fault_lab.search.run import Search

#: The one that searches the states of small worlds, and not the runs of a bug's own plan.
EXHAUSTIVE: Final = "exhaustive"
MODES: Final = ("random", "swarm", "fail-nth", "pairs", "pct", EXHAUSTIVE)
#: The small worlds that come with a release.
WORLDS: Final = ("small-growth", "small-processes")


def runs_of(mode: str, plan: plan_pb2.Plan, *, runs: int, seed: int) -> Search:
    """The runs of one plan in one mode, each made when it is asked for."""
    from fault_lab.search.run import mode_of, search

    return search(plan, mode_of(mode), runs=runs, seed=seed)


def every_state_of(world: str) -> Explored:
    """A small world with one fault wherever it can be, and what must come about in the end."""
    from fault_lab.explore.bounds import Bounds
    from fault_lab.explore.run import explore
    from fault_lab.plan.load import load_plan
    from fault_lab.plans import find_plan

    plan = load_plan(find_plan(world).read_text(encoding="utf-8"), world)
    return explore(plan, Bounds(faults=1, symmetry=False), liveness=("no-stuck-exit", "guests-end"))
