"""What follows a decision, wrong in one place. The right way: ``host_agent/decisions.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from host_agent import exit_desk
from host_agent.commands import ResolveExit
from host_agent.exits import Decision, ExitRecord, ExitState
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import HostState

Resolve = Callable[[HostState, ResolveExit], ExitRecord]
Effect = Callable[[HostState, Vcpu, ExitRecord, Decision], None]


def any_generation(right: Resolve) -> Resolve:
    """A decision is not asked which failure it is about: a late one counts for the next, two win one failure."""

    def resolve(state: HostState, command: ResolveExit) -> ExitRecord:
        record = state.exits.get(command.exit)
        if record is not None and record.open:
            record.winners.pop(command.generation, None)
            command = replace(command, generation=record.generation)
        return right(state, command)

    return resolve


def retried_once(right: Effect) -> Effect:
    """An exit that fails again is not tried again: its second RETRY is taken down, and nobody carries it out."""

    def retry(state: HostState, vcpu: Vcpu, record: ExitRecord, decision: Decision) -> None:
        if record.generation == 1:
            right(state, vcpu, record, decision)
            return
        record.state = ExitState.APPLYING
        record.expires_ns = None
        exit_desk.changed(state, record)

    return retry
