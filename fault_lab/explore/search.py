"""The search itself: breadth first, so that the first violation of a check is one with the fewest steps.

Every state is met once, by its key. What is kept of a state is its number, how it was reached, and where it leads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from fault_lab.explore.bounds import Bounds
from fault_lab.explore.moves import Move, Moves
from fault_lab.explore.sameness import Sameness
from fault_lab.explore.state import State


@dataclass(frozen=True, slots=True)
class Edge:
    """A transition between two states by number."""

    source: int
    to: int
    text: str
    fault: str


@dataclass(slots=True)
class Found:
    """A check that does not hold: its name, what was found, the state, and the move that shows it (None: the state)."""

    check: str
    text: str
    source: int
    move: Move | None


@dataclass(slots=True)
class Space:
    """Everything that was met.

    Attributes:
        states: by number, from 0, in the order in which they were met; ``depths`` beside them.
        parents: the state and the move by which each was met first; None for the first.
        edges: every transition.
        found: each check that does not hold, with the path that is shortest.
        exhausted: whether nothing was left out but what the bounds on faults and preemptions leave out.
        cut: what ended the search, or left states behind: "depth", "states".
    """

    states: list[State] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[tuple[int, Move] | None] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    found: dict[str, Found] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)

    @classmethod
    def at_once(cls, check: str, text: str) -> Space:
        """What is left where a check does not hold before anything has happened."""
        nothing = State(-1, -1, (), (), ())
        return cls([nothing], [0], [None], found={check: Found(check, text, 0, None)})

    @property
    def exhausted(self) -> bool:
        """Whether every state within the bounds was met, at whatever depth."""
        return not self.cut

    def path(self, number: int) -> list[Move]:
        """The moves that lead to a state, from the first."""
        moves = []
        parent = self.parents[number]
        while parent is not None:
            moves.append(parent[1])
            parent = self.parents[parent[0]]
        return moves[::-1]


def search(first: State, moves: Moves, sameness: Sameness | None, bounds: Bounds) -> Space:
    """Meet every state that ``first`` leads to within the bounds."""
    space = Space([first], [0], [None])
    numbers: dict[Hashable, int] = {_key(first, sameness): 0}
    waiting = deque([0])
    while waiting:
        source = waiting.popleft()
        if space.depths[source] >= bounds.depth:
            space.cut.add("depth")
            continue
        for move in moves.of(space.states[source]):
            if move.violation is not None:
                check, text = move.violation
                space.found.setdefault(check, Found(check, text, source, move))
                continue
            assert move.state is not None, "a move without a violation leads somewhere"
            key = _key(move.state, sameness)
            to = numbers.get(key)
            if to is None:
                if len(space.states) >= bounds.states:
                    space.cut.add("states")
                    continue
                to = numbers[key] = len(space.states)
                space.states.append(move.state)
                space.depths.append(space.depths[source] + 1)
                space.parents.append((source, move))
                waiting.append(to)
            space.edges.append(Edge(source, to, move.text, move.fires.point if move.fires is not None else ""))
    return space


def _key(state: State, sameness: Sameness | None) -> Hashable:
    return sameness.key(state) if sameness is not None else state
