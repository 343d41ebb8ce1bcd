"""A HostMachine with books beside it: what was sent, what is pending, what was answered, and the log of it all.

Whatever is applied goes through ``Host.apply``, which checks what must hold for every command: no bug of ours is ever
reported, each pending event gets exactly one final outcome, and what is kept to be repeated does not change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from host_agent import log
from host_agent.commands import AcquireControl, Command, OpenSession, SubmitBatch
from host_agent.effects import OutcomeReady
from host_agent.errors import Reason, Refused
from host_agent.events import (
    BlockedOutcome,
    DoneOutcome,
    EventKind,
    GuestEvent,
    Outcome,
    PendingOutcome,
    RegisterWrite,
    RejectedOutcome,
)
from host_agent.journal.command import pack_command
from host_agent.journal.outcome import pack_outcome
from host_agent.journal.record import pack_record
from host_agent.journal.recovery import Recovered, replay_records
from host_agent.journal.snapshot import read_snapshot, snapshot_bytes
from host_agent.kvm.vcpu import Vcpu
from host_agent.machine import HostMachine
from host_agent.state import HostConfig, SessionRecord, VcpuSide

SECOND_NS = 1_000_000_000

#: Why an event is turned away before its number is used.
_USES_NO_NUMBER = {
    "LIMIT_REACHED",
    "OUTCOME_FORGOTTEN",
    "SEQ_GAP",
    "SESSION_FENCED",
    "VCPU_NOT_FOUND",
    "VCPU_NOT_IN_SESSION",
}


def host_config(**changes: Any) -> HostConfig:  # noqa: ANN401 -- the fields of HostConfig
    """A small host that checks itself after every command and can be broken."""
    return HostConfig(**{"check_invariants": True, "faults": True, "cpus": 2} | changes)


@dataclass
class Host:
    """A machine, its clock, and what a reader of its replies knows."""

    config: HostConfig = field(default_factory=host_config)
    now_ns: int = 0
    records: list[tuple[int, Command]] = field(default_factory=list)
    #: The records of a journal, by number, and the CRC of the last.
    bodies: list[tuple[int, bytes]] = field(default_factory=list)
    crc: int = 0
    #: Events whose final outcome is still to come, and every outcome as last heard; by (vCPU, number).
    pending: set[tuple[str, int]] = field(default_factory=set)
    outcomes: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    #: How many final outcomes became known for an event that was pending.
    finals: dict[tuple[str, int], int] = field(default_factory=dict)
    machine: HostMachine = field(init=False)

    def __post_init__(self) -> None:
        self.machine = HostMachine(self.config)
        self.machine.on_applied = self._applied

    def _applied(self, now_ns: int, command: Command, result: object) -> None:
        """Write it down twice: as the text of a log, and as an agent's journal does."""
        self.records.append((now_ns, command))
        state = self.machine.state
        outcome = pack_outcome(command, result, state.effects)
        body, self.crc = pack_record(self.crc, state.revision, now_ns, pack_command(command), outcome)
        self.bodies.append((len(self.bodies) + 1, body))

    # -- commands ------------------------------------------------------------------------------------------------------

    def apply(self, command: Command, *, after_ns: int = 1) -> Any:  # noqa: ANN401 -- each command has its own reply
        """Apply ``command`` and do the books; raises ``Refused`` as the machine does."""
        self.now_ns += after_ns
        try:
            reply = self.machine.apply(command, self.now_ns)
        except Refused as refused:
            assert refused.reason is not Reason.INTERNAL_INVARIANT, refused.text  # noqa: PT017 -- of every refusal
            self._heard(())
            raise
        self._heard(reply if isinstance(command, SubmitBatch) else ())
        return reply

    def tried(self, command: Command, *, after_ns: int = 1) -> Any:  # noqa: ANN401
        """As ``apply``, with the refusal as a value."""
        try:
            return self.apply(command, after_ns=after_ns)
        except Refused as refused:
            return refused

    def _heard(self, answered: tuple[Outcome, ...]) -> None:
        for outcome in answered:
            if not _not_taken(outcome):
                self._note(outcome)
        for effect in self.machine.take_effects():
            if isinstance(effect, OutcomeReady):
                self._became_known(effect.outcome)

    def _note(self, outcome: Outcome) -> None:
        key = outcome.vcpu, outcome.seq
        self.outcomes[key] = outcome
        if isinstance(outcome.kind, PendingOutcome):
            self.pending.add(key)
            self.finals.setdefault(key, 0)

    def _became_known(self, outcome: Outcome) -> None:
        """An OutcomeReady: of a pending event, and final at most once."""
        key = outcome.vcpu, outcome.seq
        assert key in self.pending or isinstance(outcome.kind, PendingOutcome), f"{outcome} of an event not pending"
        self.outcomes[key] = outcome
        if outcome.final:
            self.pending.discard(key)
            self.finals[key] += 1
            assert self.finals[key] == 1, f"{key} has two final outcomes"

    def forget_vcpu(self, name: str) -> None:
        """The vCPU was removed: a later one of that name starts its numbers anew."""
        for key in [key for key in self.outcomes if key[0] == name]:
            del self.outcomes[key]
        self.finals = {key: count for key, count in self.finals.items() if key[0] != name}

    # -- shortcuts -----------------------------------------------------------------------------------------------------

    def session(self, *vcpus: str, explicit: bool = False) -> SessionRecord:
        """Open a session for ``vcpus``."""
        opened = self.apply(OpenSession(client_name="test", vcpus=vcpus, explicit=explicit))
        found = opened.session
        assert isinstance(found, SessionRecord)
        return found

    def event(self, vcpu: str, kind: EventKind) -> Outcome:
        """Send the next event of ``vcpu`` in whatever session it has."""
        return self.events(vcpu, kind)[0]

    def events(self, vcpu: str, *kinds: EventKind) -> tuple[Outcome, ...]:
        """Send several in one batch."""
        if self.session_of(vcpu) is None:
            self.session(vcpu)
        side = self.side(vcpu)
        session = side.session
        assert session is not None
        events = tuple(GuestEvent(vcpu, side.next_seq + nr, kind) for nr, kind in enumerate(kinds))
        outcomes = self.apply(SubmitBatch(session=session.name, epoch=session.epoch, events=events))
        assert isinstance(outcomes, tuple)
        return outcomes

    def control(self, scope: str = "") -> tuple[str, int]:
        """Take control as the test's controller: name and epoch."""
        record = self.apply(AcquireControl(scope=scope, controller="test"))
        return record.name, record.epoch

    def side(self, vcpu: str) -> VcpuSide:
        """What the host keeps beside a vCPU that had a session; ``HostState.side`` would make it."""
        side = self.vcpu(vcpu).agent
        assert isinstance(side, VcpuSide), f"{vcpu} never had a session"
        return side

    def session_of(self, vcpu: str) -> SessionRecord | None:
        """The session that has a vCPU now."""
        side = self.vcpu(vcpu).agent
        return side.session if isinstance(side, VcpuSide) else None

    def vcpu(self, name: str) -> Vcpu:
        """A vCPU by name."""
        return self.machine.state.vcpu(name)

    # -- the log -------------------------------------------------------------------------------------------------------

    def log_lines(self) -> list[str]:
        """The log so far, as text."""
        return [log.config_line(self.config), *(log.record_line(now_ns, command) for now_ns, command in self.records)]

    def replayed(self) -> HostMachine:
        """A second machine, made from the text of the log."""
        return log.replay(*log.read_log(self.log_lines()))

    def reloaded(self) -> Recovered:
        """A snapshot of this moment, loaded again: a machine that must go on as this one does."""
        raw = snapshot_bytes(self.machine.state, len(self.bodies), self.crc)
        loaded = read_snapshot(raw, "a snapshot")
        assert loaded.machine.digest() == self.machine.digest()
        loaded.machine.check()
        assert snapshot_bytes(loaded.machine.state, loaded.n, loaded.crc) == raw, "nothing was lost that is no digest"
        return Recovered(loaded.machine, loaded.n, loaded.crc)

    def recovered(self) -> HostMachine:
        """A third one, made from the journal; every outcome in it was the same again."""
        return replay_records(Recovered(HostMachine(self.config), 0, 0), self.bodies).machine


def _not_taken(outcome: Outcome) -> bool:
    """Whether the event's number was not used: it is blocked, out of order, or of somebody else's session."""
    kind = outcome.kind
    if isinstance(kind, RejectedOutcome):
        assert kind.reason not in ("INTERNAL_INVARIANT", "VCPU_BROKEN"), kind.text
        return kind.reason in _USES_NO_NUMBER
    return isinstance(kind, BlockedOutcome)


def wrote(event: EventKind, outcome: Outcome) -> bool:
    """Whether a register write took effect."""
    return isinstance(event, RegisterWrite) and isinstance(outcome.kind, DoneOutcome)
