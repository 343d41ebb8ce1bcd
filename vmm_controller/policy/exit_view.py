"""An exit as a policy sees it: plain frozen values, made from the wire once (vmm_controller.exit_proto).

The numbers of the enums are those of the wire, `fpstate/v1/exit.proto`; what a newer host sends beyond them is UNKNOWN,
and a policy does not guess what it might mean.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ExitState(enum.Enum):
    """Where an exit is between raised and resolved."""

    UNKNOWN = 0
    OPEN = 1
    APPLYING = 2
    PAUSED = 3
    RESOLVED = 4
    CANCELLED = 5


class ExitCause(enum.Enum):
    """What stood in the way of a larger container."""

    UNKNOWN = 0
    NO_MEMORY = 1
    QUOTA = 2
    NO_PERMISSION = 3
    HOST_UNSUPPORTED = 4
    INTERNAL = 5


class ExitTrigger(enum.Enum):
    """What asked for a larger container; the last three have nothing to decide."""

    UNKNOWN = 0
    XSETBV = 1
    WRMSR_XFD = 2
    RESTORE = 3
    CPUID = 4
    VCPU_CREATE = 5


class ExitResult(enum.Enum):
    """What became of the instruction; UNKNOWN while the exit is not resolved."""

    UNKNOWN = 0
    COMMITTED = 1
    INJECTED_GP = 2
    INJECTED_NM = 3
    DEFERRED = 4
    FEATURE_HIDDEN = 5
    VCPU_KILLED = 6
    VM_KILLED = 7
    VM_RESET = 8
    MIGRATED = 9
    VCPU_INIT = 10
    DELETED = 11
    CALL_FAILED = 12


class DecisionKind(enum.Enum):
    """What userspace can decide; decision.py has one class for each."""

    RETRY = 1
    RETRY_AFTER = 2
    RAISE_LIMIT = 3
    RECLAIM = 4
    INJECT_GP = 5
    INJECT_NM = 6
    DEFER = 7
    PAUSE = 8
    KILL_VCPU = 9
    KILL_VM = 10
    RESET_VM = 11
    HIDE_FEATURE = 12
    MIGRATE = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitView:
    """One exit at one moment. Sizes in bytes, masks of xfeatures as in XCR0, `errno` with Linux's x86 numbers."""

    #: `vms/{vm}/vcpus/{index}/exits/{seq}`.
    name: str
    #: `vms/{vm}/vcpus/{index}`.
    vcpu: str
    vcpu_uid: str
    seq: int
    #: Raised whenever a decision left the exit open, from 1.
    generation: int
    state: ExitState
    cause: ExitCause
    trigger: ExitTrigger
    errno: int
    errno_name: str
    #: How often growing was tried for this exit, from 1. It lives on the host, so a controller that starts anew goes on
    #: counting where the last one stopped.
    attempt: int
    #: Size of the container that could not be had, kernel's own format.
    bytes_needed: int
    #: Mask of what the container lacks.
    xfeatures: int
    allowed_decisions: frozenset[DecisionKind]
    old_xcr0: int = 0
    new_xcr0: int = 0
    old_xfd: int = 0
    new_xfd: int = 0
    #: Seconds until the default action, at the moment of the message; None where there is no deadline.
    expires_in_s: float | None = None
    decided_by: str = ""
    decision: DecisionKind | None = None
    result: ExitResult = ExitResult.UNKNOWN
    update_revision: int = 0

    @property
    def vm(self) -> str:
        """The VM: `vms/{vm}`."""
        return self.vcpu.partition("/vcpus/")[0]

    @property
    def settled(self) -> bool:
        """Whether it has ended: nobody can decide about it any more."""
        return self.state in (ExitState.RESOLVED, ExitState.CANCELLED)


@dataclass(frozen=True, slots=True)
class ExitHistory:
    """What a controller remembers that the exit itself does not say."""

    #: How many exits of this vCPU in a row ended DEFERRED. Each time the guest comes back with a new exit whose
    #: `attempt` starts at 1, so nothing else shows that it goes round in circles.
    deferrals: int = 0


NO_HISTORY = ExitHistory()
