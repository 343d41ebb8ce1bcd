"""The seam between the VMM and the model: one blocking call per trapped instruction.

XCR0, XFD, XFD_ERR, the tile configuration and the tiles of the guest live behind this protocol. The VMM keeps no copy
that decides anything; it turns exits into calls and answers into guest state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from guest_agent.event import TileOp


@dataclass(frozen=True, slots=True)
class Done:
    """The instruction took effect; the guest goes on behind it.

    Attributes:
        value: what RDMSR reads (64 bits); None for every other instruction.
        data: what STTILECFG (64 bytes) or TILESTORED (the whole tile register: 16 rows of 64 bytes) writes to
            guest memory; empty for every other instruction.
    """

    value: int | None = None
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Inject:
    """The instruction faults: the guest takes this exception at it, and nothing was committed.

    Attributes:
        vector: 6 #UD, 7 #NM or 13 #GP.
        error_code: pushed with #GP; None for a vector that has none.
        xfd_err: what XFD_ERR reads from now on. For the timeline: the guest gets it by RDMSR, from the model.
    """

    vector: int
    error_code: int | None = None
    xfd_err: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """The vCPU was killed, reset or moved, or is to stop: it does not enter the guest again."""

    reason: str


TrapResult = Done | Inject | Stop


class TrapHandler(Protocol):
    """Decides every trapped instruction. Called from the vCPU's thread, one call at a time; a call may block.

    While a call blocks the vCPU is parked in front of its instruction. An exception raised here ends the run and
    comes out of `KvmGuest.run` as it is.
    """

    def xsetbv(self, index: int, value: int) -> TrapResult:
        """Decide XSETBV of `value` (EDX:EAX) to register `index` (ECX). A fault is #GP(0)."""

    def wrmsr(self, msr: int, value: int) -> TrapResult:
        """Decide WRMSR of IA32_XFD (0x1c4) or IA32_XFD_ERR (0x1c5). A fault is #GP(0)."""

    def rdmsr(self, msr: int) -> TrapResult:
        """Read IA32_XFD or IA32_XFD_ERR: `Done.value`. A fault is #GP(0)."""

    def tile(self, op: TileOp, tile: int, memory: bytes) -> TrapResult:
        """Decide a tile instruction of ring 3.

        `tile` is the register's number (0 where the instruction names none). `memory` is what the instruction reads:
        64 bytes of configuration for LDTILECFG; for TILELOADD the new content of the whole tile register, 16 rows
        of 64 bytes, zero beyond the configured rows and columns; empty for the others.
        """

    def hlt(self) -> TrapResult:
        """Take note of HLT, the end of the program. `Inject` is no answer to it."""
