"""An exit to userspace: what the record holds, and what can be decided.

One exit per (vCPU, sequence number). The first decision of a generation wins; a decision that is not final (a retry
that fails again, a pause) leaves the exit open with the next generation.

    OPEN --decision--> RESOLVED                     the event has its final outcome
    OPEN --Retry fails, RetryAfter runs out and fails--> OPEN, generation + 1
    OPEN --RetryAfter--> APPLYING --the delay is over--> as Retry
    OPEN --Pause--> PAUSED, generation + 1          any decision may follow
    OPEN --Migrate--> APPLYING --the VM has gone--> CANCELLED; --the migration is aborted--> OPEN, generation + 1
    any but RESOLVED --the vCPU is killed, reset or moved--> CANCELLED
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass, field

from fpu_core.alloc import AllocFailureCause
from fpu_core.errors import Errno
from host_agent.kvm.outcome import PendingWrite, ReallocExit
from host_agent.kvm.shrink import Unshrinkable


class ExitState(enum.Enum):
    """Where an exit is."""

    OPEN = "open"
    APPLYING = "applying"
    PAUSED = "paused"
    RESOLVED = "resolved"
    CANCELLED = "cancelled"


class ExitCause(enum.Enum):
    """Why the container could not grow."""

    NO_MEMORY = "NO_MEMORY"
    QUOTA = "QUOTA"
    NO_PERMISSION = "NO_PERMISSION"


class DecisionKind(enum.Enum):
    """What userspace can decide. ``decision_rules`` says which an exit takes."""

    RETRY = enum.auto()
    RETRY_AFTER = enum.auto()
    RAISE_LIMIT = enum.auto()
    RECLAIM = enum.auto()
    INJECT_GP = enum.auto()
    INJECT_NM = enum.auto()
    DEFER = enum.auto()
    PAUSE = enum.auto()
    KILL_VCPU = enum.auto()
    KILL_VM = enum.auto()
    RESET_VM = enum.auto()
    HIDE_FEATURE = enum.auto()
    MIGRATE = enum.auto()


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision with what its kind needs."""

    kind: DecisionKind
    #: RETRY_AFTER.
    delay_ns: int = 0
    #: RAISE_LIMIT: the new limit, of the "vm" or of the "host".
    bytes: int = 0
    scope: str = "vm"
    #: RECLAIM: vCPUs to take from, and whether others may follow.
    victims: tuple[str, ...] = ()
    any_victim: bool = False
    #: MIGRATE: a gRPC target.
    target: str = ""


class ExitResult(enum.Enum):
    """What an exit came to, resolved or cancelled. Names as on the wire."""

    COMMITTED = enum.auto()
    INJECTED_GP = enum.auto()
    INJECTED_NM = enum.auto()
    DEFERRED = enum.auto()
    FEATURE_HIDDEN = enum.auto()
    VCPU_KILLED = enum.auto()
    VM_KILLED = enum.auto()
    VM_RESET = enum.auto()
    VCPU_INIT = enum.auto()
    MIGRATED = enum.auto()
    DELETED = enum.auto()


@dataclass(frozen=True, slots=True)
class Victim:
    """What a Reclaim took from one vCPU, in bytes; or why it took nothing."""

    vcpu: str
    freed_bytes: int = 0
    refused: Unshrinkable | None = None


@dataclass(slots=True)
class ExitRecord:
    """One exit. ``name`` is ``{vcpu}/exits/{seq}``; masks are of xfeatures; times are the host's clock in ns."""

    name: str
    vm: str
    vcpu: str
    vcpu_uid: str
    seq: int
    write: PendingWrite
    old_xcr0: int
    old_xfd: int
    cause: ExitCause
    errno: int
    xfeatures: int
    bytes_needed: int
    created_revision: int
    updated_revision: int
    expires_ns: int | None
    #: The latest attempt: 1 when the exit is opened, one more with each retry, the one that succeeds included.
    attempt: int = 1
    generation: int = 1
    state: ExitState = ExitState.OPEN
    #: When a RETRY_AFTER tries again.
    retry_ns: int | None = None
    decision: DecisionKind | None = None
    decided_by: str = ""
    #: Number of the last decision in the audit; 0 for none.
    audited: int = 0
    result: ExitResult | None = None
    #: Why a cancelled exit was cancelled.
    note: str = ""
    #: What the last Reclaim took from whom.
    reclaimed: tuple[Victim, ...] = ()
    #: The winner of each of the latest generations: who, what, which request. A repeated request gets the same answer.
    winners: dict[int, tuple[str, Decision, str]] = field(default_factory=dict)

    @property
    def armed(self) -> bool:
        """Whether XFD disables, now, what the container lacks: then only an XFD write can have asked for it."""
        return bool(self.old_xfd & self.xfeatures)

    @property
    def deadline_ns(self) -> int | None:
        """When a retry or the default action comes by itself."""
        return self.retry_ns if self.retry_ns is not None else self.expires_ns

    @property
    def open(self) -> bool:
        """Whether the vCPU still waits on it."""
        return self.state in (ExitState.OPEN, ExitState.APPLYING, ExitState.PAUSED)

    def failed_again(self, exited: ReallocExit) -> None:
        """Take over what the last attempt failed with."""
        self.cause, self.errno = cause_and_errno(exited)
        self.bytes_needed = exited.failed.size_bytes


def cause_and_errno(exited: ReallocExit) -> tuple[ExitCause, int]:
    """Return why, and the errno KVM_RUN would return: ENOMEM for memory and limits, EPERM for permission."""
    if exited.failed.errno is Errno.EPERM:
        return ExitCause.NO_PERMISSION, errno.EPERM
    if exited.failed.cause is AllocFailureCause.QUOTA:
        return ExitCause.QUOTA, errno.ENOMEM
    return ExitCause.NO_MEMORY, errno.ENOMEM
