"""One run of a search, which repeats by itself: from its plan and its seed, and nothing else."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.sim.run import RunResult, simulate

#: Seeds have 64 bits.
SEEDS: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Tried:
    """One run. ``varied`` says to people what made it another than the rest: "seed 7", "hit 12 of ...".

    ``plan`` is the very plan that ran: ``simulate(plan, seed)`` is this run again, to the byte. ``seen`` are the
    "sometimes" that came about, by the names of the plan that was searched.
    """

    plan: plan_pb2.Plan
    seed: int
    result: RunResult = field(repr=False)
    varied: str
    seen: frozenset[str] = frozenset()


#: What a mode is: it yields runs for as long as it is asked, and returns when nothing is left to try.
Runs = Generator[Tried, None, None]


def tried(plan: plan_pb2.Plan, seed: int, varied: str) -> Tried:
    """Run a plan."""
    result = simulate(plan, seed)
    return Tried(plan, seed, result, varied, result.seen)
