"""The exhaustive search: distinct states a second, beside a bare search of the same graph whose steps are look-ups."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from bench.pairs import Figures
from bench.report import Row, by_turns_row, measured
from fault_lab.explore.bounds import Bounds
from fault_lab.explore.run import Explored, explore
from fault_lab.plan.load import load_plan
from fault_lab.plans import find_plan

PAIRS = 5


def rows(fraction: int = 1) -> Iterator[Row]:
    """Two worlds: one with every order, in which hosts come again and again, and one reduced as far as it goes."""
    orders = {"symmetry": False, "reduction": False}
    for title, how, at_least in (("every order", orders, 0.006), ("symmetry and reduction", {}, 0.002)):
        bounds = Bounds(faults=2 if fraction == 1 else 1, **how)
        plan = load_plan(find_plan("small-growth").read_text(encoding="utf-8"), "small-growth")
        explored = explore(plan, bounds)
        graph = _graph(explored)
        figures = Figures()
        figures.alternate(
            lambda plan=plan, bounds=bounds: _rate(lambda: explore(plan, bounds).states),  # type: ignore[misc]
            lambda graph=graph: _rate(lambda: _bare(graph)),  # type: ignore[misc]
            pairs=PAIRS if fraction == 1 else 2,
        )
        note = "floor: breadth first over the same graph, its states tuples and its transitions a dictionary."
        yield by_turns_row(
            f"small-growth, {title}: distinct states", "states/s", figures.pairs(), at_least=at_least, note=note
        )
        steps = len(explored.world.hosts.steps) / explored.transitions
        yield measured(f"small-growth, {title}: transitions for which the machine was asked", "share", steps)


def _graph(explored: Explored) -> dict[tuple[object, ...], list[tuple[object, ...]]]:
    states = explored.space.states
    graph: dict[tuple[object, ...], list[tuple[object, ...]]] = {state: [] for state in states}
    for edge in explored.space.edges:
        graph[states[edge.source]].append(states[edge.to])
    return graph


def _bare(graph: dict[tuple[object, ...], list[tuple[object, ...]]]) -> int:
    first = next(iter(graph))
    seen = {first}
    waiting = deque([first])
    while waiting:
        for after in graph[waiting.popleft()]:
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    return len(seen)


def _rate(run: object) -> float:
    assert callable(run)
    begun = time.process_time()
    count: int = run()
    return count / (time.process_time() - begun)
