"""What a guest agent reports, and the one final outcome each event has. Plain values: the log and the wire carry them.

Sequence numbers belong to the vCPU (its uid) and start at 1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fpu_core.tile import TileOp
from fpu_core.xsave_insn import XsaveInsn


@dataclass(frozen=True, slots=True)
class Enter:
    """KVM_RUN starts on a thread; ``task`` is a task id of the VM, empty for the vCPU's own thread."""

    task: str = ""


@dataclass(frozen=True, slots=True)
class Leave:
    """KVM_RUN returns."""


@dataclass(frozen=True, slots=True)
class Preempt:
    """The vCPU's thread loses its CPU; ``cpu`` is where it goes on, None for the same one."""

    cpu: int | None = None


@dataclass(frozen=True, slots=True)
class Xsetbv:
    """XSETBV of ``value`` to XCR ``index`` at privilege level ``cpl``."""

    index: int
    value: int
    cpl: int = 0


@dataclass(frozen=True, slots=True)
class Wrmsr:
    """WRMSR of IA32_XFD (0x1c4), IA32_XFD_ERR (0x1c5) or IA32_XSS (0xda0)."""

    msr: int
    value: int


@dataclass(frozen=True, slots=True)
class Rdmsr:
    """RDMSR of IA32_XFD, IA32_XFD_ERR or IA32_XSS."""

    msr: int


@dataclass(frozen=True, slots=True)
class Nm:
    """An #NM exit; ``cr0_ts`` is the guest's CR0.TS."""

    cr0_ts: bool = False


@dataclass(frozen=True, slots=True)
class RegisterWrite:
    """The guest loads ``data`` at ``offset`` of component ``feature``."""

    feature: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class RegisterRead:
    """The guest reads ``length`` bytes at ``offset`` of component ``feature``."""

    feature: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile instruction that the guest's processor could not execute; ``memory`` is what it reads."""

    op: TileOp
    tile: int = 0
    memory: bytes = b""


@dataclass(frozen=True, slots=True)
class Xsave:
    """XSAVE, XSAVEOPT, XSAVEC or XRSTOR of ``memory`` that lies ``misaligned_by`` bytes behind a multiple of 64."""

    insn: XsaveInsn
    rfbm: int
    memory: bytes
    misaligned_by: int = 0


@dataclass(frozen=True, slots=True)
class XfdSync:
    """XFD as the guest left it at a VM exit, with the intercept dropped."""

    xfd: int


@dataclass(frozen=True, slots=True)
class Init:
    """An INIT signal."""


@dataclass(frozen=True, slots=True)
class Hlt:
    """The guest halts."""


@dataclass(frozen=True, slots=True)
class Xgetbv:
    """XGETBV of XCR ``index``."""

    index: int


@dataclass(frozen=True, slots=True)
class WriteCr4:
    """MOV of ``value`` to CR4."""

    value: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """A report that could not be read. Its number is used up, like any other's, and its outcome is what is here."""

    reason: str
    text: str
    field: str = ""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


EventKind = (
    Enter
    | Leave
    | Preempt
    | Xsetbv
    | Wrmsr
    | Rdmsr
    | Nm
    | RegisterWrite
    | RegisterRead
    | Tile
    | Xsave
    | XfdSync
    | Init
    | Hlt
    | Xgetbv
    | WriteCr4
    | Malformed
)


@dataclass(frozen=True, slots=True)
class GuestEvent:
    """One event: ``vcpu`` is a resource name."""

    vcpu: str
    seq: int
    kind: EventKind


@dataclass(frozen=True, slots=True)
class Growth:
    """A container that grew: bytes of its image, and all the features it now has room for."""

    old_bytes: int
    new_bytes: int
    xfeatures: int


@dataclass(frozen=True, slots=True)
class Intercepts:
    """Which exits the guest takes from now on."""

    xfd_read: bool
    xfd_write: bool
    nm: bool


@dataclass(frozen=True, slots=True)
class DoneOutcome:
    """The event took effect. ``skip_instruction``: the guest goes on behind it."""

    value: int | None = None
    data: bytes = b""
    skip_instruction: bool = True
    reallocated: Growth | None = None
    intercepts: Intercepts | None = None


@dataclass(frozen=True, slots=True)
class InjectOutcome:
    """The guest takes an exception; nothing was committed."""

    vector: int
    error_code: int | None
    xfd_err: int


@dataclass(frozen=True, slots=True)
class PendingOutcome:
    """The vCPU is parked on an exit; the final outcome follows."""

    exit: str
    generation: int


@dataclass(frozen=True, slots=True)
class BlockedOutcome:
    """An earlier event of this vCPU is pending, or its VM is leaving: the event was not taken, send it again."""

    expected_seq: int
    exit: str
    #: The migration that the VM is leaving by; empty for none.
    migration: str = ""


@dataclass(frozen=True, slots=True)
class RejectedOutcome:
    """The event was a mistake. Reason and metadata as in ``errors.Refused``."""

    reason: str
    text: str
    field: str = ""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Directive:
    """What the host decided and only the VMM can do. ``kind``: STOP, RESET, PAUSE, RESUME or MOVED."""

    id: int
    vcpu: str
    kind: str
    reason: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class GoneOutcome:
    """The vCPU was killed, reset or moved before the event could finish."""

    directive: Directive


OutcomeKind = DoneOutcome | InjectOutcome | PendingOutcome | BlockedOutcome | RejectedOutcome | GoneOutcome


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of event ``seq`` of ``vcpu``."""

    vcpu: str
    seq: int
    kind: OutcomeKind

    @property
    def final(self) -> bool:
        """Whether this is the event's one final outcome."""
        return not isinstance(self.kind, PendingOutcome | BlockedOutcome)
