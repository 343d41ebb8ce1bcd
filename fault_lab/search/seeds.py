"""The mode that changes the seed alone: each run draws everything anew."""

from __future__ import annotations

from itertools import count

from fpstate.fault.v1 import plan_pb2

from fault_lab.search.tried import SEEDS, Runs, tried


def random_runs(plan: plan_pb2.Plan, seed: int) -> Runs:
    """The plan with ``seed``, with the next one, and so on; it never ends by itself."""
    for nr in count(seed):
        yield tried(plan, nr % SEEDS, f"seed {nr % SEEDS}")
