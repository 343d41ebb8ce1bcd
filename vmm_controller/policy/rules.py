"""The policies: pure values that answer an exit, and that put together make another policy.

A policy either chooses a decision that the exit allows or declines (None), and then says how many of the exit's
attempts it has used up, so that the next one in a chain starts counting from 1:

    retry:tries=2  then  retry-after:tries=5  then  pause

    attempt        1      2      3            4     ...   7            8
    choice         RETRY  RETRY  RETRY_AFTER  RETRY_AFTER RETRY_AFTER  PAUSE
                                 base         base*factor ...

Everything is counted by `ExitView.attempt`, which lives on the host: a controller that was killed and started anew goes
on where the last one stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from vmm_controller.policy.backoff import Backoff, Draw
from vmm_controller.policy.decision import Decision, Defer, RaiseLimit, Reclaim, Retry, RetryAfter
from vmm_controller.policy.exit_view import DecisionKind, ExitCause, ExitHistory, ExitView


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a policy decides about. `attempt` counts from 1 what is left of the exit's attempts for this policy."""

    exit: ExitView
    attempt: int
    history: ExitHistory
    draw: Draw

    def allows(self, kind: DecisionKind) -> bool:
        """Whether the exit takes such a decision now."""
        return kind in self.exit.allowed_decisions


@dataclass(frozen=True, slots=True)
class Leave:
    """The choice to say nothing: the exit's deadline brings the host's default action."""


#: None: the policy declines, and the next one in the chain is asked.
Choice = Decision | Leave | None


class Policy(Protocol):
    """A pure answer to exits: the same case, the same choice."""

    def choose(self, case: Case) -> Choice:
        """Return a decision that the exit allows, or to leave it, or None where this policy has none (any more)."""

    def spent(self, case: Case) -> int:
        """Return how many of the case's attempts were this policy's, once it has declined."""


@dataclass(frozen=True, slots=True)
class Always:
    """The same final decision each time: #GP, pause, kill. Declines where the exit does not allow it."""

    decision: Decision

    def choose(self, case: Case) -> Choice:
        """The decision, if it is allowed."""
        return self.decision if case.allows(self.decision.kind) else None

    def spent(self, case: Case) -> int:  # noqa: ARG002 -- what is final is no attempt
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class Silent:
    """Says nothing, so that the deadline decides: for watching, and for showing what a silent controller leads to."""

    def choose(self, case: Case) -> Choice:  # noqa: ARG002
        """Leave the exit alone."""
        return Leave()

    def spent(self, case: Case) -> int:  # noqa: ARG002
        """None."""
        return 0


class _Attempts:
    """What has a number of tries: declines after them, or where its decision is not allowed."""

    __slots__ = ()
    kind: ClassVar[DecisionKind]
    tries: int

    def choose(self, case: Case) -> Choice:
        """The decision while there are tries left."""
        mine = case.allows(self.kind) and case.attempt <= self.tries
        return self.decision(case) if mine else None

    def spent(self, case: Case) -> int:
        """All tries, unless they could not even be made."""
        return self.tries if case.allows(self.kind) else 0

    def decision(self, case: Case) -> Decision:
        """The decision for the case's attempt."""
        raise NotImplementedError

    def _check_tries(self) -> None:
        if self.tries < 1:
            raise ValueError(f"tries: expected 1 or more, got {self.tries}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy(_Attempts):
    """RETRY, at once, `tries` times. Bounded, since a retry that fails for good would go on for ever."""

    kind: ClassVar[DecisionKind] = DecisionKind.RETRY
    tries: int = 3

    def __post_init__(self) -> None:
        self._check_tries()

    def decision(self, case: Case) -> Decision:  # noqa: ARG002
        """The same each time."""
        return Retry()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryAfterPolicy(_Attempts):
    """RETRY_AFTER, `tries` times, with the waits of `backoff`."""

    kind: ClassVar[DecisionKind] = DecisionKind.RETRY_AFTER
    tries: int = 5
    backoff: Backoff = field(default_factory=Backoff)

    def __post_init__(self) -> None:
        self._check_tries()

    def decision(self, case: Case) -> Decision:
        """Wait for as long as the backoff says for this attempt of this exit."""
        return RetryAfter(self.backoff.delay_s(case.exit.name, case.attempt, case.draw))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimPolicy(_Attempts):
    """RECLAIM from whomever the host chooses, `tries` times."""

    kind: ClassVar[DecisionKind] = DecisionKind.RECLAIM
    tries: int = 1

    def __post_init__(self) -> None:
        self._check_tries()

    def decision(self, case: Case) -> Decision:  # noqa: ARG002
        """The same each time."""
        return Reclaim(any_other=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseLimitPolicy(_Attempts):
    """RAISE_LIMIT to `raised` once: the limit is absolute, so a second time would change nothing."""

    kind: ClassVar[DecisionKind] = DecisionKind.RAISE_LIMIT
    raised: RaiseLimit
    tries: int = 1

    def __post_init__(self) -> None:
        self._check_tries()

    def decision(self, case: Case) -> Decision:  # noqa: ARG002
        """The same each time."""
        return self.raised


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferPolicy:
    """DEFER, `tries` times in a row per vCPU: the guest's next use of the feature comes back as another exit."""

    tries: int = 3

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"tries: expected 1 or more, got {self.tries}")

    def choose(self, case: Case) -> Choice:
        """DEFER until the vCPU was deferred too often in a row."""
        mine = case.allows(DecisionKind.DEFER) and case.history.deferrals < self.tries
        return Defer() if mine else None

    def spent(self, case: Case) -> int:  # noqa: ARG002 -- a deferred instruction was no attempt to grow
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class Chain:
    """The first of `links` that does not decline; each starts counting attempts where the one before stopped."""

    links: tuple[Policy, ...]

    def choose(self, case: Case) -> Choice:
        """Ask the links in their order."""
        for link in self.links:
            choice = link.choose(case)
            if choice is not None:
                return choice
            case = _after(case, link)
        return None

    def spent(self, case: Case) -> int:
        """The sum of the links' attempts."""
        total = 0
        for link in self.links:
            total += link.spent(case)
        return total


def _after(case: Case, link: Policy) -> Case:
    # At least 1: what declined without having had its attempts (a cause that changed on the way) leaves none negative.
    return replace(case, attempt=max(case.attempt - link.spent(case), 1))


@dataclass(frozen=True, slots=True)
class ByCause:
    """A policy per cause; declines for a cause that has none."""

    policies: Mapping[ExitCause, Policy]

    def choose(self, case: Case) -> Choice:
        """Ask the policy of the exit's cause."""
        policy = self.policies.get(case.exit.cause)
        return policy.choose(case) if policy else None

    def spent(self, case: Case) -> int:
        """What that policy has spent."""
        policy = self.policies.get(case.exit.cause)
        return policy.spent(case) if policy else 0
