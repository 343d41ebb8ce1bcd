"""A machine twice: the same state, of which one copy goes on.

Records, containers and bytes are copied, each once, so that what was one object is one object; values are shared. What
a record is, and which fields of it are made anew, is what snapshots know (``host_agent.journal.shapes``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

from fault_lab.injection.action import Drop
from fault_lab.injection.hit import Hit
from fault_lab.injection.table import ArmedFault, FaultTable
from fault_lab.sim.books import Books
from fault_lab.sim.rules import Rules
from host_agent.journal.shapes import RECORDS, fields_of
from host_agent.kvm.cpuid import GuestCpuid
from host_agent.machine import HostMachine
from host_agent.sessions import Opened
from host_agent.state import HostState

#: A fault at no point of ours, so that a machine asks at every point.
_ASKS: Final = ArmedFault(name="explored", point="explore.asks", action=Drop())
#: Made anew for each copy, since hooks and indexes lead back to the state that they are of.
_HOOKS: Final = frozenset({"deadlines", "effects", "faults", "should_fail", "may_grow"})


class ChosenFault(FaultTable):
    """A machine's faults while one command is carried out: hits that could fail are noted, one of them does fail."""

    def __init__(self, fits: Callable[[Hit], ArmedFault | None], fails: int) -> None:
        super().__init__({_ASKS.name: _ASKS})
        self._fits = fits
        self._fails = fails
        #: All hits of the command, and those that could fail.
        self.all: list[Hit] = []
        self.met: list[Hit] = []

    def hit(self, hit: Hit, *, owner: str = "") -> ArmedFault | None:  # noqa: ARG002 -- nobody owns these
        """Note a hit; it fails where it is the one that was chosen, counted from 0 among those that could."""
        self.all.append(hit)
        fault = self._fits(hit)
        if fault is None:
            return None
        self.met.append(hit)
        return fault if len(self.met) - 1 == self._fails else None

    def failed_since(self, met: int) -> int:
        """Which hit has failed, counted from the first behind ``met`` of them; -1 where none has."""
        return self._fails - met if met <= self._fails < len(self.met) else -1


def forked(machine: HostMachine) -> HostMachine:
    """Return a machine that knows the same and goes its own way; it has no faults."""
    state: HostState = _copied(machine.state, {})
    state.effects = []
    state.faults = FaultTable()
    state.hook_faults()
    state.index_deadlines()
    return HostMachine.of(state)


def forked_rules(rules: Rules) -> Rules:
    """Return the rules with books of their own."""
    made = copy.copy(rules)
    for name, value in vars(rules).items():
        if isinstance(value, dict | set):
            setattr(made, name, value.copy())
        elif isinstance(value, Books):
            setattr(made, name, value.copied(made.fail))
    return made


#: A record that is somebody in a snapshot, and that nothing changes once it is made.
SHARED: Final = frozenset({GuestCpuid})
#: Values that hold nothing.
_PLAIN: Final = frozenset({int, str, bool, bytes, type(None)})
#: The fields of every class of which a copy is made: records, and the one value that holds a record.
_COPIED: Final[dict[type, tuple[str, ...]]] = {
    cls: tuple(name for name in fields_of(cls) if name not in _HOOKS) for cls in (*RECORDS, Opened) if cls not in SHARED
}


def _copied(value: Any, made: dict[int, Any]) -> Any:  # noqa: ANN401 -- anything a record may hold
    kind = type(value)
    if kind in _PLAIN:
        return value
    fields = _COPIED.get(kind)
    if fields is not None:
        known = made.get(id(value))
        if known is not None:
            return known
        twin = made[id(value)] = object.__new__(kind)
        for name in fields:
            each = getattr(value, name)
            object.__setattr__(twin, name, each if type(each) in _PLAIN else _copied(each, made))
        return twin
    if kind is dict:
        return {key: each if type(each) in _PLAIN else _copied(each, made) for key, each in value.items()}
    if kind is bytearray:
        return bytearray(value)
    if kind is tuple:
        return tuple([_copied(each, made) for each in value])
    if kind is list:
        return [_copied(each, made) for each in value]
    return set(value) if kind is set else value
