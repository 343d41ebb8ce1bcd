"""A book: looked into around every command of a host, and put right where a host has come back from its journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fault_lab.sim.guest import GuestNode
    from fault_lab.sim.host import HostNode
    from host_agent.commands import Command

#: Says that a check does not hold: its name, and what was found.
Fail = Callable[[str, str], None]


class Book:
    """What every book has; each keeps something of its own of each host, by the host's name."""

    def __init__(self, fail: Fail) -> None:
        self._fail = fail

    def before(self, host: HostNode, command: Command) -> None:
        """A command is about to be applied."""

    def after(self, host: HostNode, command: Command, result: object, effects: list[Any]) -> None:
        """It was applied, or refused: then ``result`` is the ``Refused``."""

    def heard(self, guest: GuestNode, vcpu: str, uid: str, seq: int) -> None:
        """An agent has heard the final outcome of an event."""

    def recovered(self, host: HostNode) -> None:
        """The host knows what its journal has and nothing else."""
