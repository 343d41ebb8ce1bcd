"""A campaign is run: blocks go to an executor, what comes back is kept, until all are done or enough was found."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from itertools import islice

from fpstate.fault.v1 import plan_pb2

from fault_lab.campaign.block import Block, Failure, run_block
from fault_lab.campaign.standing import Standing
from fault_lab.campaign.store import Store
from fault_lab.sim.shrink import Shrinker

#: Called after each block that is done.
OnBlock = Callable[[Standing], None]


def run_campaign(
    store: Store, executor: Executor, *, jobs: int, stop_after: int | None = None, on_block: OnBlock | None = None
) -> Standing:
    """Do what is left of a campaign.

    Two blocks a job are with the executor at a time, so that none waits and little is lost when this ends.
    ``stop_after``: no new block is begun once so many distinct failures are known.
    """
    store.mend()
    standing = Standing.of(store.outline, store.blocks())
    left = (work for work in store.outline.work() if work.nr not in standing.blocks)
    open_blocks: set[Future[Block]] = set()
    while True:
        if stop_after is None or len(standing.failures) < stop_after:
            open_blocks |= {executor.submit(run_block, work) for work in islice(left, 2 * jobs - len(open_blocks))}
        if not open_blocks:
            return standing
        done, open_blocks = wait(open_blocks, return_when=FIRST_COMPLETED)
        for block in sorted((each.result() for each in done), key=lambda block: block.nr):
            store.add(block)
            standing.add(block)
            if on_block is not None:
                on_block(standing)


def shrink_failures(store: Store, standing: Standing, executor: Executor, *, runs: int) -> None:
    """Make one failure of each signature small that is not small yet, in at most ``runs`` runs each."""
    todo = [failure for failure in standing.failures.values() if not store.shrunk_of(failure.signature).exists()]
    futures = [(failure, executor.submit(shrunk, failure, runs)) for failure in todo]
    for failure, future in futures:
        plan = future.result()
        if plan is not None:
            store.add_shrunk(failure.signature, plan_pb2.Plan.FromString(plan))


def shrunk(failure: Failure, runs: int) -> bytes | None:
    """A failure's plan made small, serialized; None where the budget was too small for anything."""
    plan = plan_pb2.Plan.FromString(failure.plan)
    found = Shrinker(plan, failure.seed, failure.check, runs_max=runs).shrink()
    return None if found is None else found.plan.SerializeToString(deterministic=True)
