"""What became of an event: plain values, one class for each kind of outcome of the wire.

Done, Injected, Gone and Rejected are final: an event has exactly one of them. Pending and Blocked are not: a pending
event gets its final outcome later, a blocked one was not looked at and is sent again.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class DirectiveKind(enum.Enum):
    """What a VMM is told to do with a vCPU."""

    STOP = "STOP"  # stop running it, for good
    RESET = "RESET"  # reset it and run from the reset vector
    PAUSE = "PAUSE"  # do not enter the guest until RESUME
    RESUME = "RESUME"  # enter it again
    MOVED = "MOVED"  # it lives on another host: open a session at `target`


@dataclass(frozen=True, slots=True)
class Directive:
    """Something the host decided and only the VMM can do.

    Attributes:
        id: its number on the vCPU, from 1.
        vcpu: `vms/{vm}/vcpus/{index}`.
        kind: what to do.
        reason: why, one sentence for a person.
        target: for MOVED, the gRPC target of the host where the vCPU lives now; else empty.
    """

    id: int
    vcpu: str
    kind: DirectiveKind
    reason: str = ""
    target: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.reason}" if self.reason else self.kind.value


@dataclass(frozen=True, slots=True)
class Growth:
    """A container was replaced by a larger one. Sizes in bytes of the kernel's own format; the mask it has room for."""

    old_bytes: int
    new_bytes: int
    xfeatures: int


@dataclass(frozen=True, slots=True)
class Intercepts:
    """What has to leave the guest from now on."""

    xfd_read: bool
    xfd_write: bool
    nm: bool


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field of a request: its path and what was expected there."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call or an event was refused: a google.rpc.Status, taken apart.

    Attributes:
        code: name of the status code, `"NOT_FOUND"`.
        message: for a person.
        reason: name of the ErrorReason without its prefix, `"VM_NOT_FOUND"`; empty where the answer has none (it came
            from gRPC itself, not from the host).
        metadata: the reason's variables, by their lowerCamel keys.
        violations: the wrong fields, for INVALID_ARGUMENT.
        retry_delay_s: how long to wait before a repetition makes sense, in seconds; None where the answer does not say.
    """

    code: str
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[FieldViolation, ...] = ()
    retry_delay_s: float | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The event happened.

    Attributes:
        value: what an Rdmsr read, 64 bits; None for every other kind.
        data: what a RegisterRead, STTILECFG or TILESTORED gave; empty for every other kind.
        skip_instruction: advance RIP past the instruction.
        reallocated: the growth of the guest's container that this event brought; None if it did not grow.
        intercepts: what to intercept from now on; None where the host did not say.
    """

    value: int | None = None
    data: bytes = b""
    skip_instruction: bool = True
    reallocated: Growth | None = None
    intercepts: Intercepts | None = None


@dataclass(frozen=True, slots=True)
class Injected:
    """The guest gets an exception at the instruction; nothing was committed.

    Attributes:
        vector: 6 #UD, 7 #NM or 13 #GP.
        error_code: what to push; None for a vector without one.
        xfd_err: for #NM, IA32_XFD_ERR that the guest is to read; else 0.
    """

    vector: int
    error_code: int | None = None
    xfd_err: int = 0


@dataclass(frozen=True, slots=True)
class Gone:
    """The vCPU was killed, reset or moved before the event could happen; `directive` says what the VMM has to do."""

    directive: Directive


@dataclass(frozen=True, slots=True)
class Rejected:
    """The event was the caller's mistake: it changed nothing, and its number is used up."""

    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Pending:
    """The instruction has not happened: the vCPU is parked on the exit of this name until a controller decides.

    `generation` counts the exit's decisions, from 1. In a `SeqLedger` an event whose outcome is not known at all, since
    the connection was cut, is pending on the exit `""`.
    """

    exit: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Blocked:
    """The event was not looked at: `expected_seq` comes first. `exit` is where the vCPU is parked; empty for none.

    `migration` is by which its VM is about to leave, empty for none: the event is sent again in a while.
    """

    expected_seq: int
    exit: str = ""
    migration: str = ""


FinalOutcome = Done | Injected | Gone | Rejected
Outcome = FinalOutcome | Pending | Blocked
#: What an instruction of a guest comes to, once mistakes are raised.
InstructionOutcome = Done | Injected | Gone
