"""The ways of searching, by name. What they search with is imported when they are asked: behind the patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fpstate.fault.v1 import plan_pb2

    from fault_lab.search.run import Search

MODES: Final = ("random", "swarm", "fail-nth", "pairs", "pct")


def runs_of(mode: str, plan: plan_pb2.Plan, *, runs: int, seed: int) -> Search:
    """The runs of one plan in one mode, each made when it is asked for."""
    from fault_lab.search.run import mode_of, search

    return search(plan, mode_of(mode), runs=runs, seed=seed)
