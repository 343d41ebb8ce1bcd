"""What follows a decision, wrong in one place. The right way: ``host_agent/decisions.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from host_agent.commands import ResolveExit
from host_agent.exits import ExitRecord
from host_agent.state import HostState

Resolve = Callable[[HostState, ResolveExit], ExitRecord]


def any_generation(right: Resolve) -> Resolve:
    """A decision is not asked which failure it is about: a late one counts for the next, two win one failure."""

    def resolve(state: HostState, command: ResolveExit) -> ExitRecord:
        record = state.exits.get(command.exit)
        if record is not None and record.open:
            record.winners.pop(command.generation, None)
            command = replace(command, generation=record.generation)
        return right(state, command)

    return resolve
