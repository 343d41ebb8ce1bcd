"""The systematic modes: every hit fails once, in a run of its own; and every pair of hits.

The kernel's fail-nth sweep: the first hit fails, then the second, ..., until a run ends in which nothing fired. Here
that run comes first. It has the plan's faults for counting alone, and so says which hits there are, in the order in
which they were reached; each of them is then a run whose schedule has that one hit. Until the hit, a run is the first
one again, so there are as many runs as hits, and one.

    run 1            nothing fires: 4 hits are counted
    run 2 to 5       hit 1, ..., hit 4 fires
    pairs: behind each of them the hits are counted again, those too that are there only because it fired

As in the kernel, fail-nth decides instead of probability, interval, times, space and the task filter. What says which
hits are meant holds: scope, window, phases, pick, the filters of the capability and of the trace. Two faults at one
point are two hits.
"""

from __future__ import annotations

from dataclasses import replace

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.draw import PPM
from fault_lab.injection.hit import Hit
from fault_lab.plan.numbered import Fired
from fault_lab.plan.resolve import planned_faults
from fault_lab.search.tried import Runs, Tried
from fault_lab.sim.run import simulate
from fault_lab.sim.schedule import with_hits


def fail_nth_runs(plan: plan_pb2.Plan, seed: int) -> Runs:
    """One run without a fault, and one for each hit that it reaches."""
    counting = Counting(plan, seed)
    yield _tried(plan, seed, (), counting)
    for nr, hit in enumerate(counting.reached, 1):
        yield _tried(plan, seed, (hit,), None, f"hit {nr} of {len(counting.reached)}: ")


def pair_runs(plan: plan_pb2.Plan, seed: int) -> Runs:
    """The same, and then one for each hit with each that comes behind it once it has fired."""
    first = Counting(plan, seed)
    yield _tried(plan, seed, (), first)
    behind: list[tuple[Fired, list[Fired]]] = []
    for nr, hit in enumerate(first.reached, 1):
        again = Counting(plan, seed)
        yield _tried(plan, seed, (hit,), again, f"hit {nr} of {len(first.reached)}: ")
        behind.append((hit, again.behind(hit)))
    count = sum(len(others) for _, others in behind)
    pairs = [(hit, other) for hit, others in behind for other in others]
    for nr, pair in enumerate(pairs, 1):
        yield _tried(plan, seed, pair, None, f"pair {nr} of {count}: ")


def _tried(plan: plan_pb2.Plan, seed: int, hits: tuple[Fired, ...], counting: Counting | None, head: str = "") -> Tried:
    made = with_hits(plan, seed, hits)
    result = simulate(made, seed, counting)
    # A schedule's hits have no names; those of the plan's faults are what its "sometimes" speak of.
    there = {(each.point, each.entity, each.hit) for each in result.fired}
    fired = {f"fired:{each.fault}" for each in hits if (each.point, each.entity, each.hit) in there}
    return Tried(made, seed, result, head + (", then ".join(map(_named, hits)) or "nothing fires"), result.seen | fired)


def _named(hit: Fired) -> str:
    return f"{hit.fault}, hit {hit.hit} of {hit.point} at {hit.entity}"


class Counting:
    """A watch that counts what the faults of a plan would: ``reached``, in order, as each would have fired."""

    def __init__(self, plan: plan_pb2.Plan, seed: int) -> None:
        self._planned = [each for each in planned_faults(plan, seed) if each.fault.owner]
        for each in self._planned:
            each.fault.attributes = _filters(each.fault.attributes)
            each.fault.gate_ppm = PPM
        self._phase = ""
        self.reached: list[Fired] = []

    def enter(self, phase: str) -> None:
        """A phase begins."""
        self._phase = phase

    def see(self, hit: Hit, number: int) -> None:
        """A point was reached."""
        for planned in self._planned:
            fault = planned.fault
            meant = fault.point == hit.point and self._phase in planned.phases and fault.concerns(hit)
            if meant and fault.should_fail(hit):
                self.reached.append(Fired(fault.name, hit.point, hit.entity, number, fault.drawn_action(hit)))

    def behind(self, hit: Fired) -> list[Fired]:
        """What was reached behind a hit.

        Numbers that had been there before are left out: a host that comes back numbers what it has lost again.
        """
        keys = [(each.point, each.entity, each.hit) for each in self.reached]
        key = hit.point, hit.entity, hit.hit
        if key not in keys:
            return []
        before = set(keys[: keys.index(key) + 1])
        return [each for each, mine in zip(self.reached, keys, strict=True) if mine not in before]


def _filters(attributes: FaultAttributes) -> FaultAttributes:
    """What says which hits are meant; every one of them counts."""
    return replace(attributes, probability_ppm=PPM, interval=1, times=-1, space=0, fail_nth=0, task_filter=False)
