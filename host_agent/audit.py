"""The audit: who decided what about which exit, when, why, and what came of it. The latest so many, oldest first.

It is part of what the host knows, so it is as durable as the exits are, and replays to the same: the principal and the
reason come in as part of the command. What was refused decided nothing, and is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from host_agent.exits import Decision, ExitCause, ExitRecord, ExitResult, ExitState


@dataclass(frozen=True, slots=True, kw_only=True)
class Decider:
    """Who decides and why. ``principal`` is empty where the host itself takes the default action."""

    name: str
    principal: str = ""
    reason: str = ""


#: Who takes the default action.
DEADLINE = Decider(name="deadline")


@dataclass(slots=True, eq=False)
class DecisionRecord:
    """One decision. ``at_ns`` is the host's clock, ``unix_ns`` the wall's; ``number`` counts from 1 without a gap."""

    number: int
    revision: int
    at_ns: int
    unix_ns: int
    decider: Decider
    exit: str
    vm: str
    vcpu_uid: str
    generation: int
    cause: ExitCause
    decision: Decision
    #: Where the exit was afterwards; APPLYING as long as the decision has not come to anything.
    state: ExitState = ExitState.APPLYING
    #: What the exit came to, where that was the end of it.
    result: ExitResult | None = None


@dataclass(slots=True, eq=False)
class Audit:
    """The decisions the host remembers."""

    decisions: dict[int, DecisionRecord] = field(default_factory=dict)
    #: How many were taken, those that are forgotten included.
    count: int = 0

    def take(
        self, record: ExitRecord, decision: Decision, who: Decider, *, revision: int, at_ns: int, unix_ns: int
    ) -> None:
        """Note a decision about ``record`` that is about to take effect."""
        self.count += 1
        record.audited = self.count
        self.decisions[self.count] = DecisionRecord(
            number=self.count,
            revision=revision,
            at_ns=at_ns,
            unix_ns=unix_ns,
            decider=who,
            exit=record.name,
            vm=record.vm,
            vcpu_uid=record.vcpu_uid,
            generation=record.generation,
            cause=record.cause,
            decision=decision,
        )

    def came_to(self, record: ExitRecord) -> None:
        """The exit changed: if its last decision had not come to anything yet, it has now."""
        last = self.decisions.get(record.audited)
        if last is not None and last.state is ExitState.APPLYING:
            last.state, last.result = record.state, record.result

    def forget(self, keep: int) -> None:
        """Keep the latest ``keep`` decisions."""
        while len(self.decisions) > keep:
            del self.decisions[next(iter(self.decisions))]
