"""A caller's mistake: a reason out of the frozen registry, a text, and what the text is made of.

``Reason`` holds the names of the wire's ErrorReason, and the service maps each to its status code in one table. Raised
before anything is changed.
"""

from __future__ import annotations

import enum

from fpu_core.alloc import AllocFailure
from fpu_core.errors import Errno


class Reason(enum.Enum):
    """Why a command is refused. Names as in protos/fpstate/v1/errors.proto."""

    FIELD_INVALID = enum.auto()
    VM_NOT_FOUND = enum.auto()
    VM_EXISTS = enum.auto()
    VM_NOT_EMPTY = enum.auto()
    VCPU_NOT_FOUND = enum.auto()
    VCPU_EXISTS = enum.auto()
    VCPU_PARKED = enum.auto()
    VCPU_NOT_ENTERED = enum.auto()
    VCPU_ALREADY_ENTERED = enum.auto()
    VCPU_KILLED = enum.auto()
    VCPU_BROKEN = enum.auto()
    VCPU_NOT_IN_SESSION = enum.auto()
    TASK_NOT_FOUND = enum.auto()
    TASK_EXISTS = enum.auto()
    TASK_BUSY = enum.auto()
    TASK_NOT_RUNNING = enum.auto()
    SESSION_NOT_FOUND = enum.auto()
    SESSION_FENCED = enum.auto()
    SESSION_EXPIRED = enum.auto()
    SEQ_GAP = enum.auto()
    OUTCOME_FORGOTTEN = enum.auto()
    EXIT_NOT_FOUND = enum.auto()
    EXIT_ALREADY_RESOLVED = enum.auto()
    EXIT_STALE_GENERATION = enum.auto()
    CONTROL_FENCED = enum.auto()
    CONTROL_HELD = enum.auto()
    CONTROL_OUT_OF_SCOPE = enum.auto()
    DECISION_NOT_ALLOWED = enum.auto()
    KVM_ERRNO = enum.auto()
    ALLOCATION_FAILED = enum.auto()
    XFD_SYNC_NEEDS_GROWTH = enum.auto()
    CAPABILITY_MISSING = enum.auto()
    HOST_DRAINING = enum.auto()
    LIMIT_REACHED = enum.auto()
    ETAG_MISMATCH = enum.auto()
    REQUEST_ID_REUSED = enum.auto()
    VM_MOVED = enum.auto()
    MIGRATION_NOT_FOUND = enum.auto()
    MIGRATION_FENCED = enum.auto()
    MIGRATION_WRONG_STATE = enum.auto()
    MIGRATION_IN_PROGRESS = enum.auto()
    SNAPSHOT_CORRUPT = enum.auto()
    SNAPSHOT_VERSION_UNSUPPORTED = enum.auto()
    HOST_INCOMPATIBLE = enum.auto()
    STATE_CONFIDENTIAL = enum.auto()
    FAULTS_NOT_ENABLED = enum.auto()
    FAULT_NOT_FOUND = enum.auto()
    FAULT_POINT_UNKNOWN = enum.auto()
    INTERNAL_INVARIANT = enum.auto()


class Refused(Exception):  # noqa: N818 -- a refusal, which need not be anybody's error
    """The command was refused and nothing has changed.

    ``metadata`` holds every variable of the text, under lowerCamel keys; ``field`` is the path of a bad field.
    """

    def __init__(self, reason: Reason, text: str, *, field: str = "", **metadata: object) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.field = field
        self.metadata = {key: str(value) for key, value in metadata.items()}


def invalid(field: str, expected: str, got: object) -> Refused:
    """A field that cannot be right: names it and says what would have been accepted."""
    text = f"{field}: expected {expected}, got {got!r}"
    refused = Refused(Reason.FIELD_INVALID, text, field=field, expected=expected, got=got)
    refused.metadata["field"] = field
    return refused


def no_memory(what: str, failure: AllocFailure, vcpu: str) -> Refused:
    """ENOMEM: an allocation for ``what`` did not happen, and the caller is told at once."""
    return Refused(
        Reason.ALLOCATION_FAILED,
        f"no memory for {what}: {failure.cause.value} ({failure.account})",
        vcpu=vcpu,
        cause=failure.cause.name,
        bytesNeeded=failure.size_bytes,
        scope="HOST" if failure.account == "host" else "VM",
        errno=12,
        errnoName="ENOMEM",
    )


def out_of_memory(what: str, vcpu: str = "") -> Refused:
    """ENOMEM for something that is no container: the kernel's own structures, of which no ledger is kept."""
    return Refused(
        Reason.ALLOCATION_FAILED,
        f"no memory for {what}",
        vcpu=vcpu,
        cause="NO_MEMORY",
        bytesNeeded=0,
        scope="HOST",
        errno=12,
        errnoName="ENOMEM",
    )


def kvm_errno(errno: Errno, what: str) -> Refused:
    """A refusal that is the kernel's own: its errno is in the metadata."""
    return Refused(Reason.KVM_ERRNO, f"{what}: {errno.name}", errno=int(errno), errnoName=errno.name, call=what)


def limit_reached(what: str, limit: str, maximum: int) -> Refused:
    """A limit of the host: ``limit`` is its name in the wire's HostLimits where it is there."""
    return Refused(Reason.LIMIT_REACHED, f"{what}: {maximum} is the most", limit=limit, maximum=maximum)
