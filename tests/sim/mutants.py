"""Control planes that are wrong in one place each: what the rules must find. Applied with monkeypatch, never kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from fault_lab.broken.decisions import any_generation
from fault_lab.sim.host import HostNode
from fault_lab.sim.journal import ModelledJournal
from host_agent import commands as c
from host_agent import decisions, exit_desk, machine, sessions
from host_agent.exits import Decision, DecisionKind, ExitRecord, ExitState
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import HostState

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """One planted bug, the checks any of which is right to find it, and in how many runs one of them has to."""

    plant: Callable[[Patch], None]
    checks: frozenset[str]
    runs: int = 20


def ack_before_commit(patch: Patch) -> None:
    """Answers do not wait for the journal."""
    patch.setattr(ModelledJournal, "settled", lambda _journal, then, _given_up: then())


def double_decision(patch: Patch) -> None:
    """A decision for a generation that was decided is applied to the one that the exit is at now."""
    patch.setitem(machine.HANDLERS, c.ResolveExit, any_generation(decisions.resolve_exit))


def stale_epoch(patch: Patch) -> None:
    """A session keeps its vCPUs when a newer one takes them over."""
    patch.setattr(sessions, "_take_over", _keeps_both)
    real = HostState.session

    def session(state: HostState, name: str, _epoch: int) -> Any:  # noqa: ANN401 -- the record
        found = state.sessions.get(name)
        return real(state, name, found.epoch if found is not None else 0)

    patch.setattr(HostState, "session", session)


def _keeps_both(state: HostState, session: Any, name: str, vcpu: Vcpu) -> None:  # noqa: ANN401 -- the record
    side = state.side(vcpu)
    side.session = side.session or session
    session.vcpus[name] = vcpu


def lost_park(patch: Patch) -> None:
    """The time at which a RETRY_AFTER is to try again is forgotten: the vCPU stays parked for ever."""

    def retry_after(state: HostState, _vcpu: Vcpu, record: ExitRecord, _decision: Decision) -> None:
        record.state = ExitState.APPLYING
        record.expires_ns = None
        exit_desk.changed(state, record)

    patch.setitem(decisions._EFFECTS, DecisionKind.RETRY_AFTER, retry_after)


def epochs_stand_still(patch: Patch) -> None:
    """Every session and every control has the same epoch."""
    patch.setattr(HostState, "next_epoch", lambda _state: 1)


def hidden_state(patch: Patch) -> None:
    """A lease depends on how many were renewed in the process, which no log holds."""
    renewed = itertools.count()
    real = sessions.keep_alive

    def keep_alive(state: HostState, command: c.KeepAlive) -> int:
        return real(state, command) + next(renewed)

    patch.setitem(machine.HANDLERS, c.KeepAlive, keep_alive)


def journal_forgets(patch: Patch) -> None:
    """A host comes back without the last records that were durable."""
    real = HostNode.ended

    def ended(host: HostNode) -> None:
        real(host)
        del host.journal.records[-5:]

    patch.setattr(HostNode, "ended", ended)


def answers_again(patch: Patch) -> None:
    """An event whose number is repeated is taken once more."""
    patch.setattr(sessions, "_repeated", _taken_again)
    real = sessions._sequenced

    def sequenced(state: HostState, session: Any, event: Any) -> Any:  # noqa: ANN401
        vcpu = session.vcpus.get(event.vcpu)
        side = state.side(vcpu) if vcpu is not None else None
        if side is not None and event.seq == side.next_seq - 1 and side.exit is None:
            event = replace(event, seq=side.next_seq)
        return real(state, session, event)

    patch.setattr(sessions, "_sequenced", sequenced)


def _taken_again(side: Any, event: Any) -> Any:  # noqa: ANN401
    return side.outcomes[min(side.outcomes, key=lambda seq: abs(seq - event.seq))]


MUTANTS = {
    "ack-before-commit": Mutant(ack_before_commit, frozenset({"ack-after-commit"})),
    "double-decision": Mutant(double_decision, frozenset({"one-decision-a-generation"}), runs=60),
    "stale-epoch": Mutant(stale_epoch, frozenset({"epochs-fence", "invariants"})),
    "lost-park": Mutant(lost_park, frozenset({"no-stuck-exit"}), runs=40),
    "epochs-stand-still": Mutant(epochs_stand_still, frozenset({"epochs-rise", "acknowledged-is-there"})),
    "hidden-state": Mutant(hidden_state, frozenset({"recovered-same-outcomes", "recovered-same-digest"}), runs=40),
    "journal-forgets": Mutant(
        journal_forgets, frozenset({"acknowledged-is-there", "session-goes-on", "recovered-same-digest"})
    ),
    "answers-again": Mutant(answers_again, frozenset({"numbers-once", "final-once"})),
}
