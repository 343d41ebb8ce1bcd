"""A trap handler small enough to read at a glance: XCR0, XFD, XFD_ERR and eight tiles; it accepts everything.

What a test wants to go wrong it says in a subclass.
"""

from __future__ import annotations

import pytest

from guest_agent.kvm import (
    MSR_IA32_XFD,
    Done,
    GrowthOrder,
    GuestProgram,
    GuestReport,
    Inject,
    KvmGuest,
    TileOp,
    TrapResult,
    kvm_available,
)

UNAVAILABLE = kvm_available()
needs_kvm = pytest.mark.skipif(UNAVAILABLE is not None, reason=f"no KVM guest can run here: {UNAVAILABLE}")

XTILE = 1 << 17 | 1 << 18
XTILE_DATA = 1 << 18
UD, NM, GP = 6, 7, 13

ARMED = GuestProgram(order=GrowthOrder.XFD_ARMED_FIRST, seed=2021)
XCR0_FIRST = GuestProgram(order=GrowthOrder.XCR0_FIRST_WITH_XFD_0, seed=1016)


class Model:
    """A processor with AMX and XFD as far as the guest program can tell; accepts everything."""

    def __init__(self) -> None:
        self.xcr0 = 1
        self.xfd = 0
        self.xfd_err = 0
        self.config = bytes(64)
        self.tiles = [bytes(1024)] * 8
        self.calls: list[str] = []
        self.halted = False

    def xsetbv(self, index: int, value: int) -> TrapResult:
        """Take any value for XCR0."""
        self.calls.append(f"XSETBV {index} {value:#x}")
        self.xcr0 = value
        return Done()

    def wrmsr(self, msr: int, value: int) -> TrapResult:
        """Take any value for XFD and XFD_ERR."""
        self.calls.append(f"WRMSR {msr:#x} {value:#x}")
        if msr == MSR_IA32_XFD:
            self.xfd = value
        else:
            self.xfd_err = value
        return Done()

    def rdmsr(self, msr: int) -> TrapResult:
        """Read XFD or XFD_ERR."""
        self.calls.append(f"RDMSR {msr:#x}")
        return Done(value=self.xfd if msr == MSR_IA32_XFD else self.xfd_err)

    def tile(self, op: TileOp, tile: int, memory: bytes) -> TrapResult:
        """Do the tile instruction: #UD without XCR0, #NM for tile data while XFD is armed."""
        self.calls.append(f"{op.value} {tile}")
        if self.xcr0 & XTILE != XTILE:
            return Inject(UD)
        needs_data = op in (TileOp.TILELOADD, TileOp.TILESTORED, TileOp.TILEZERO)
        if needs_data and self.xfd & XTILE_DATA:
            self.xfd_err = XTILE_DATA
            return Inject(NM, xfd_err=XTILE_DATA)
        match op:
            case TileOp.LDTILECFG:
                self.config, self.tiles = memory, [bytes(1024)] * 8
            case TileOp.TILERELEASE:
                self.config, self.tiles = bytes(64), [bytes(1024)] * 8
            case TileOp.STTILECFG:
                return Done(data=self.config)
            case TileOp.TILELOADD:
                self.tiles[tile] = memory
            case TileOp.TILEZERO:
                self.tiles[tile] = bytes(1024)
            case TileOp.TILESTORED:
                return Done(data=self.tiles[tile])
        return Done()

    def hlt(self) -> TrapResult:
        """Note the end."""
        self.halted = True
        return Done()


def run(model: Model, program: GuestProgram = ARMED) -> GuestReport:
    """Run the program on a real vCPU against the model."""
    return KvmGuest(model, program).run()


# ---- the mail's two ways to grow ----
