"""A block of seeds: the unit of work, for any process that has the plan. It returns figures, never histories."""

from __future__ import annotations

import hashlib
import traceback
from dataclasses import dataclass

from fpstate.fault.v1 import plan_pb2

from fault_lab.campaign.signature import signature
from fault_lab.search.run import search
from fault_lab.search.tried import Tried


@dataclass(frozen=True, slots=True)
class Work:
    """What a block does. ``plan`` is the serialized plan, so that nothing else travels."""

    plan: bytes
    mode: plan_pb2.SearchMode.ValueType
    depth: int
    nr: int
    first: int
    runs: int


@dataclass(slots=True)
class Failure:
    """Failures of one signature: how many, and the first of them, with the very plan that ran."""

    signature: str
    check: str
    text: str
    seed: int
    step: int
    faults: tuple[str, ...]
    plan: bytes
    count: int = 1


@dataclass(frozen=True, slots=True)
class Block:
    """What came of a block. ``histories`` is the SHA-256 of the digests of its runs' histories, in the order of seeds.

    ``broken``: the simulator itself failed in so many runs; ``error`` is the first traceback, with its seed.
    """

    nr: int
    first: int
    runs: int
    steps: int
    fired: int
    unknown: int
    seen: frozenset[str]
    histories: str
    failures: tuple[Failure, ...]
    broken: int = 0
    error: str = ""


def run_block(work: Work) -> Block:
    """Run every seed of a block. What the simulator does wrong is counted, and the next seed is tried."""
    plan = plan_pb2.Plan.FromString(work.plan)
    digests = hashlib.sha256()
    steps = fired = unknown = broken = 0
    seen: set[str] = set()
    failures: dict[str, Failure] = {}
    error = ""
    for seed in range(work.first, work.first + work.runs):
        try:
            one = next(search(plan, work.mode, runs=1, seed=seed, depth=work.depth))
        except Exception:  # noqa: BLE001 -- whatever it is: a run that breaks has found nothing, and is told
            broken += 1
            error = error or f"seed {seed}: {traceback.format_exc()}"
            digests.update(b"broken")
            continue
        result = one.result
        steps += result.steps
        fired += len(result.fired)
        unknown += result.violation is None and result.cut_short
        seen |= one.seen
        digests.update(result.digest.encode())
        if result.violation is not None:
            _note(failures, one)
    return Block(
        nr=work.nr,
        first=work.first,
        runs=work.runs,
        steps=steps,
        fired=fired,
        unknown=unknown,
        seen=frozenset(seen),
        histories=digests.hexdigest(),
        failures=tuple(failures.values()),
        broken=broken,
        error=error,
    )


def _note(failures: dict[str, Failure], tried: Tried) -> None:
    found = tried.result.violation
    assert found is not None
    key = signature(tried.result)
    if key in failures:
        failures[key].count += 1
        return
    failures[key] = Failure(
        signature=key,
        check=found.check,
        text=found.text,
        seed=tried.seed,
        step=found.step,
        faults=tuple(sorted({each.fault for each in tried.result.fired})),
        plan=tried.plan.SerializeToString(deterministic=True),
    )
