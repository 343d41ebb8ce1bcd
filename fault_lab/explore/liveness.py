"""What must come about in the end: looked for in the graph of all states, once it is complete.

Faults end, and everything else that can happen does happen in the end: a message arrives, a deadline passes, a process
that has ended starts. So every run comes, in the end, to a part of the graph that it does not leave any more and all of
which it goes through again and again: a strongly connected component that only faults lead out of. An exit that is open
in every state of such a component is never resolved. This is so for joins and for cycles alike, since components are
looked at, and not paths.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from fault_lab.explore.search import Found, Space

if TYPE_CHECKING:
    from fault_lab.explore.world import SmallWorld


def unresolved(space: Space, world: SmallWorld, checks: Collection[str]) -> Iterator[Found]:
    """Yield each of the checks that fails in some component that is not left, at the state that is met first."""
    asked = {"no-stuck-exit": _stuck, "guests-end": _unfinished}
    last = sorted(min(component) for component in last_components(_fair_edges(space)))
    components = {min(component): component for component in last_components(_fair_edges(space))}
    for check in sorted(checks):
        for first in last:
            texts = [asked[check](space, world, number) for number in components[first]]
            if all(texts):
                number = min(components[first], key=lambda each: space.depths[each])
                yield Found(check, texts[0][0], number, None)
                break


def _stuck(space: Space, world: SmallWorld, number: int) -> list[str]:
    return world.hosts.stuck(space.states[number].host)


def _unfinished(space: Space, world: SmallWorld, number: int) -> list[str]:
    state = space.states[number]
    return [
        f"{world.hosts.cast.vcpus[nr].name} has not come to its end"
        for nr, at in enumerate(state.vcpus)
        if at.phase not in ("ended", "idle") and not world.hosts.paused(state.host, nr)
    ]


def _fair_edges(space: Space) -> list[list[int]]:
    """Where each state leads without a fault."""
    edges: list[list[int]] = [[] for _ in space.states]
    for edge in space.edges:
        if not edge.fault:
            edges[edge.source].append(edge.to)
    return edges


def last_components(edges: Sequence[Sequence[int]]) -> list[list[int]]:
    """The strongly connected components that no edge leads out of. Source: Tarjan, 1972; without recursion."""
    count = len(edges)
    index, low, on_stack = [-1] * count, [0] * count, [False] * count
    stack: list[int] = []
    found: list[list[int]] = []
    of = [-1] * count
    numbered = 0
    for root in range(count):
        if index[root] >= 0:
            continue
        work = [(root, 0)]
        while work:
            at, child = work.pop()
            if child == 0:
                index[at] = low[at] = numbered
                numbered += 1
                stack.append(at)
                on_stack[at] = True
            for place in range(child, len(edges[at])):
                to = edges[at][place]
                if index[to] < 0:
                    work.append((at, place + 1))
                    work.append((to, 0))
                    break
                if on_stack[to]:
                    low[at] = min(low[at], index[to])
            else:
                if low[at] == index[at]:
                    component = []
                    while not component or component[-1] != at:
                        component.append(stack.pop())
                        on_stack[component[-1]] = False
                        of[component[-1]] = len(found)
                    found.append(component)
                if work:
                    below = work[-1][0]
                    low[below] = min(low[below], low[at])
    return [each for nr, each in enumerate(found) if all(of[to] == nr for at in each for to in edges[at])]
