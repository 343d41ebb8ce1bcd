"""Where a guest is in what it plays: a position is all that it has heard, as far as that makes a difference to it.

The script's own interpreter says what comes next. A position is played from the beginning once, and remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fault_lab.explore.interned import Interned
from fault_lab.sim.workload import Part
from guest_agent.event import GuestEvent
from guest_agent.outcome import Done, Growth, Injected, InstructionOutcome
from guest_agent.script import ScriptReport

#: A script asks whether its container grew, and never by how much.
_GREW: Final = Growth(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Position:
    """What comes next: an event, or the report of a guest that has come to its end."""

    event: GuestEvent | None
    report: ScriptReport | None


class Scripts:
    """Every position of every part that is played. Equal parts have the same positions."""

    def __init__(self) -> None:
        self._positions: Interned[tuple[Part, tuple[InstructionOutcome, ...]]] = Interned()
        self._known: dict[int, Position] = {}
        self._next: dict[tuple[int, InstructionOutcome], int] = {}

    def start(self, part: Part) -> int:
        """The position before the first event."""
        return self._number(part, ())

    def _number(self, part: Part, heard: tuple[InstructionOutcome, ...]) -> int:
        plays = (part.seed, part.drawn) if part.script is None else repr(part.script)
        return self._positions.number((plays, heard), (part, heard))

    def at(self, position: int) -> Position:
        """What comes next at a position."""
        known = self._known.get(position)
        if known is None:
            known = self._known[position] = _played(*self._positions[position])
        return known

    def after(self, position: int, outcome: InstructionOutcome) -> int:
        """The position after the outcome of a position's event."""
        heard = _relevant(outcome)
        found = self._next.get((position, heard))
        if found is None:
            part, before = self._positions[position]
            found = self._next[position, heard] = self._number(part, (*before, heard))
        return found


def _relevant(outcome: InstructionOutcome) -> InstructionOutcome:
    match outcome:
        case Done(reallocated=grown):
            return replace(outcome, reallocated=_GREW if grown is not None else None, intercepts=None)
        case Injected(vector=vector):
            return Injected(vector)
        case _:
            return outcome


def _played(part: Part, heard: tuple[InstructionOutcome, ...]) -> Position:
    events = part.round(1)
    try:
        event = next(events)
        for outcome in heard:
            event = events.send(outcome)
    except StopIteration as end:
        return Position(None, end.value)
    finally:
        events.close()
    return Position(event, None)
