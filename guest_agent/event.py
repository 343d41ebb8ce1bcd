"""What happens on a vCPU, as its VMM saw it: plain values, one class for each kind of event of the wire.

Values only: no gRPC, no clock. `guest_agent.wire` turns them into messages; a simulated world may use them as they are.
The order of the classes is that of `GuestEvent.kind` in the contract.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class TileOp(enum.Enum):
    """The tile instructions, by the manual's mnemonics. Source: Intel SDM vol. 2, the instructions of these names."""

    LDTILECFG = "LDTILECFG"
    STTILECFG = "STTILECFG"
    TILERELEASE = "TILERELEASE"
    TILEZERO = "TILEZERO"
    TILELOADD = "TILELOADD"
    TILESTORED = "TILESTORED"


@dataclass(frozen=True, slots=True)
class Enter:
    """KVM_RUN begins: the container is swapped in. `task` is `vms/{vm}/tasks/{task}`; empty for the vCPU's own."""

    task: str = ""


@dataclass(frozen=True, slots=True)
class Leave:
    """KVM_RUN returns: the guest's container is swapped out."""


@dataclass(frozen=True, slots=True)
class Preempt:
    """The vCPU's thread loses its CPU. `cpu` is the index of the one where it goes on; None for the same."""

    cpu: int | None = None


@dataclass(frozen=True, slots=True)
class Xsetbv:
    """XSETBV of `value` (EDX:EAX) to the extended control register `index` (ECX) at privilege level `cpl`, 0 to 3."""

    value: int
    index: int = 0
    cpl: int = 0


@dataclass(frozen=True, slots=True)
class Wrmsr:
    """WRMSR of `value` (EDX:EAX) to IA32_XFD (0x1c4), IA32_XFD_ERR (0x1c5) or IA32_XSS (0xda0)."""

    msr: int
    value: int


@dataclass(frozen=True, slots=True)
class Rdmsr:
    """RDMSR of IA32_XFD (0x1c4), IA32_XFD_ERR (0x1c5) or IA32_XSS (0xda0)."""

    msr: int


@dataclass(frozen=True, slots=True)
class Nm:
    """The guest raised #NM and the VMM intercepted it; `cr0_ts` is the guest's CR0.TS."""

    cr0_ts: bool = False


@dataclass(frozen=True, slots=True)
class RegisterWrite:
    """The guest loaded `data` at byte `offset` of the state component `feature`."""

    feature: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class RegisterRead:
    """`length` bytes at byte `offset` of the state component `feature` are asked for."""

    feature: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile instruction that the guest's processor does not have.

    `tile` is the register's number, 0 to 7 (0 where the instruction names none). `memory` is what it reads: 64 bytes
    for LDTILECFG; for TILELOADD the whole register, 16 rows of 64 bytes without their stride, of which the configured
    rows and columns count; empty for the others.
    """

    op: TileOp
    tile: int = 0
    memory: bytes = b""


class XsaveInsn(enum.Enum):
    """The XSAVE instructions any program may execute. Source: Intel SDM vol. 2, the instructions of these names."""

    XSAVE = "XSAVE"
    XSAVEOPT = "XSAVEOPT"
    XSAVEC = "XSAVEC"
    XRSTOR = "XRSTOR"


@dataclass(frozen=True, slots=True)
class XfdSync:
    """IA32_XFD as the VMM read it after a vmexit, once writes of it pass through."""

    xfd: int


@dataclass(frozen=True, slots=True)
class Init:
    """The vCPU received INIT; the one event that may come while another is pending, which it cancels."""


@dataclass(frozen=True, slots=True)
class Hlt:
    """The guest executed HLT."""


@dataclass(frozen=True, slots=True)
class Xgetbv:
    """XGETBV of the extended control register `index` (ECX), executed for the guest: 0, or 1 for what is in use."""

    index: int = 0


@dataclass(frozen=True, slots=True)
class WriteCr4:
    """MOV of `value` to CR4. A vCPU for which none was reported is taken to have CR4.OSXSAVE set."""

    value: int


@dataclass(frozen=True, slots=True)
class Xsave:
    """An XSAVE instruction on memory of the guest.

    `rfbm` is EDX:EAX; `memory` is the operand as it is before, 576 bytes at least; `misaligned_by` is how far its
    address is from a multiple of 64.
    """

    insn: XsaveInsn
    rfbm: int
    memory: bytes
    misaligned_by: int = 0


GuestEvent = (
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
    | XfdSync
    | Init
    | Hlt
    | Xgetbv
    | WriteCr4
    | Xsave
)
