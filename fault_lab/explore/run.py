"""An exploration, and what it says: clean within its bounds, or the shortest way to a check that does not hold.

explored = explore(plan, Bounds(faults=2))
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from fpstate.fault.v1 import plan_pb2

from fault_lab.explore.bounds import Bounds
from fault_lab.explore.counterexample import Counterexample, Placer
from fault_lab.explore.liveness import unresolved
from fault_lab.explore.search import Found, Space, search
from fault_lab.explore.world import SmallWorld
from fault_lab.plan.canonical import plan_hash
from fault_lab.sim.rules import EVENTUALLY, Violation


@dataclass(frozen=True, slots=True)
class Explored:
    """What came of it.

    Attributes:
        plan, bounds: what was explored, and how far.
        states, transitions, depth: how many there are, and how many steps the state that is farthest away takes.
        exhausted: whether every state within the bounds on faults and preemptions was met, so that more depth or more
            states would find nothing else.
        violations: each check that does not hold, by the shortest path to it.
        space, world: everything that was met, for pictures and counterexamples.
    """

    plan: plan_pb2.Plan
    bounds: Bounds
    violations: tuple[Found, ...]
    space: Space = field(repr=False)
    world: SmallWorld = field(repr=False)

    @property
    def plan_hash(self) -> str:
        """The hash of the plan."""
        return plan_hash(self.plan)

    @property
    def states(self) -> int:
        """How many states there are."""
        return len(self.space.states)

    @property
    def transitions(self) -> int:
        """How many transitions there are."""
        return len(self.space.edges)

    @property
    def depth(self) -> int:
        """How many steps the farthest state takes."""
        return max(self.space.depths)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left within the bounds on what goes wrong."""
        return self.space.exhausted

    def steps_to(self, found: Found) -> list[str]:
        """What happens on the shortest path to a violation, a line a step."""
        last = [found.move.text] if found.move is not None else []
        return [*(move.text for move in self.space.path(found.source)), *last]

    def counterexample(self, found: Found, *, runs_max: int = 600) -> Counterexample | None:
        """A plan that violates the same check in the simulator; None where none was found in so many of its runs."""
        return Placer(self.plan, found.check, runs_max=runs_max).place(self.space, self.world.people, found)

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        bounds = self.bounds
        preemptions = "any" if bounds.preemptions is None else bounds.preemptions
        limits = (
            f"faults {bounds.faults}, drops {bounds.drops}, duplicates {bounds.duplicates}, "
            f"crashes {bounds.crashes}, preemptions {preemptions}"
        )
        met = f"{self.states} states, {self.transitions} transitions, depth {self.depth}"
        end = "the space is exhausted" if self.exhausted else f"cut by {' and '.join(sorted(self.space.cut))}"
        if self.violations:
            return f"violated: {', '.join(found.check for found in self.violations)}: {met}; {limits}"
        return f"no violation within bounds: {limits}: {met}; {end}"


def explore(plan: plan_pb2.Plan, bounds: Bounds | None = None, *, liveness: Collection[str] = ()) -> Explored:
    """Explore a checked plan. ``liveness`` names checks of ``settle`` that are asked of the whole graph as well.

    Raises:
        ExploreError: the plan has what a small world has not.
        ValueError: symmetry is asked for together with liveness, where it would not be sound.
    """
    bounds = bounds if bounds is not None else Bounds()
    if liveness and bounds.symmetry:
        raise ValueError("symmetry: expected none together with liveness: a guest must not stand in for another one")
    unknown = set(liveness) - set(EVENTUALLY)
    if unknown:
        raise ValueError(f"liveness: expected some of {', '.join(EVENTUALLY)}, got {', '.join(sorted(unknown))}")
    world = SmallWorld(plan, bounds)
    try:
        space = search(world.first(), world.moves, world.sameness, bounds)
    except Violation as violation:
        space = Space.at_once(violation.check, violation.text)
    found = dict(space.found)
    if liveness and space.exhausted:
        found |= {each.check: each for each in unresolved(space, world, liveness)}
    return Explored(plan, bounds, tuple(found.values()), space, world)
