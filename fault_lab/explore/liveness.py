"""What must come about in the end: asked of the graph of all states, once it is complete.

Faults end, and everything else that can happen does happen in the end: a message arrives, a deadline passes, a process
that has ended starts. Under that fairness a run comes to a part of the graph that only faults lead out of, and goes
through all of it again and again. So what is to come about does come about from everywhere exactly where from every
state some way without a fault leads to a state in which it has: else there is a part that is never left and has none.

The way is looked for backwards from the states in which it has come about, over the whole graph, and so joins of paths
and cycles are nothing special.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from fault_lab.explore.search import Found, Space

if TYPE_CHECKING:
    from fault_lab.explore.state import State
    from fault_lab.explore.world import SmallWorld


def unresolved(space: Space, world: SmallWorld, checks: Collection[str]) -> Iterator[Found]:
    """Yield each of the checks that never comes about from some state on, with the first such state that was met."""
    left_open: dict[str, Callable[[State], list[str]]] = {
        "no-stuck-exit": lambda state: world.hosts.stuck(state.host),
        "guests-end": lambda state: _unfinished(world, state),
    }
    before = _before(space)
    for check in sorted(checks):
        texts = [left_open[check](state) for state in space.states]
        hopeful = _leading_to([nr for nr, text in enumerate(texts) if not text], before)
        for number, text in enumerate(texts):
            if number not in hopeful:
                yield Found(check, text[0], number, None)
                break


def _unfinished(world: SmallWorld, state: State) -> list[str]:
    return [
        f"{world.hosts.cast.vcpus[nr].name} has not come to its end"
        for nr, at in enumerate(state.vcpus)
        if at.phase not in ("ended", "idle") and not world.hosts.paused(state.host, nr)
    ]


def _before(space: Space) -> list[list[int]]:
    """From where each state is reached without a fault. A violation ends its run, so nothing is asked behind it."""
    before: list[list[int]] = [[] for _ in space.states]
    for edge in space.edges:
        if not edge.fault:
            before[edge.to].append(edge.source)
    return before


def _leading_to(goals: list[int], before: list[list[int]]) -> set[int]:
    """Every state from which some way leads to one of the goals, these included."""
    found = set(goals)
    waiting = list(goals)
    while waiting:
        for source in before[waiting.pop()]:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found
