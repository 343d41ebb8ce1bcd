"""PCT: random priorities with few changes, over messages and timers (Burckhardt and others, 2010).

Where chance decides each step by itself, a bug that needs one message to be late for a while is hardly ever met. Here
each lane (``fault_lab.sim.order``) has a priority for the whole run, and only ``depth`` - 1 times, at steps that are
drawn, the lane that would go first is put behind all others.
"""

from __future__ import annotations

from itertools import count

from fpstate.fault.v1 import plan_pb2

from fault_lab.search.tried import SEEDS, Runs, tried
from fault_lab.sim.run import simulate


def pct_runs(plan: plan_pb2.Plan, seed: int, depth: int) -> Runs:
    """Priorities from ``seed``, from the next one, and so on; it never ends by itself.

    The changes are spread over as many steps as a run by time has, with the plan's own seed.
    """
    made = plan_pb2.Plan()
    made.CopyFrom(plan)
    made.ClearField("search")
    del made.order.deviations[:]
    made.order.priorities.changes = depth - 1
    made.order.priorities.steps = simulate(plan).steps or 1
    for nr in count(seed):
        yield tried(made, nr % SEEDS, f"priorities of seed {nr % SEEDS}")
