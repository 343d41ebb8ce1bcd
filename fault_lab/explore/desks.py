"""Where a controller is: its desk, by everything that it has seen since it began, and what it decides at each news.

Desk and policies are the controller's own. A desk is made anew from the news once, and remembered by what is on it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from fault_lab.explore.interned import Interned
from vmm_controller.desk import ExitDesk, key_of
from vmm_controller.policy import Decision, ExitView, parse_policies


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision about a generation of an exit, as the controller has sent it."""

    exit: str
    vcpu: str
    generation: int
    decision: Decision
    allowed: frozenset[str]


def _longest(_name: str, _attempt: int) -> int:
    """A draw that takes nothing off a wait: time is an order here, and no length."""
    return 0


class Desks:
    """The desks of one controller."""

    def __init__(self, policies: list[str]) -> None:
        self._book = parse_policies(policies)
        self._desks: Interned[ExitDesk] = Interned()
        self._heard: dict[tuple[int, int], tuple[int, Decided | None]] = {}
        self.empty = self._number(ExitDesk())

    def _number(self, desk: ExitDesk) -> int:
        return self._desks.number(_content(desk), desk)

    def lines(self, number: int) -> list[str]:
        """What is on a desk, a text for each entry of each of its books."""
        return [line for _, book in _content(self._desks[number]) for line in book]

    def hear(self, number: int, news: int, view: ExitView) -> tuple[int, Decided | None]:
        """The desk after a piece of news, by the news' number, and what is decided on it."""
        found = self._heard.get((number, news))
        if found is None:
            found = self._heard[number, news] = self._hear(number, view)
        return found

    def _hear(self, number: int, view: ExitView) -> tuple[int, Decided | None]:
        desk = copy.copy(self._desks[number])
        for name, value in vars(desk).items():
            setattr(desk, name, copy.copy(value))
        desk.see(view)
        wanted = desk.wanted(key_of(view))
        if wanted is None:
            return self._number(desk), None
        desk.decided(wanted)
        decision = self._book.decide(wanted, desk.history(wanted), _longest)
        allowed = frozenset(kind.name for kind in wanted.allowed_decisions)
        made = Decided(wanted.name, wanted.vcpu, wanted.generation, decision, allowed) if decision is not None else None
        return self._number(desk), made


def _content(desk: ExitDesk) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(
        (name, tuple(sorted(f"{name} {each!r}" for each in (book.items() if isinstance(book, dict) else book))))
        for name, book in vars(desk).items()
    )
