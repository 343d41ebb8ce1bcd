"""Cpu: one modelled logical processor, with the kernel's per-CPU variables beside the registers.

Registers are real bytes, one run per component. A component whose XINUSE bit is clear is in its init state whatever its
bytes say, so putting it there copies nothing, as on the processor.

Sources: Intel SDM vol. 1 chapter 13 and 13.14 (XFD), vol. 2 (tile instructions);
arch/x86/kernel/fpu/xstate.h, xfd_set_state() and xfd_update_state().
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fpu_core.config import FpuConfig
from fpu_core.errors import FieldError
from fpu_core.fpstate import MXCSR_INIT
from fpu_core.layout import MXCSR_OFFSET
from fpu_core.tile import INIT_TILE_CONFIG, TILE_BYTES, TILECFG_START_ROW, TileConfig, TileOp, load_tile, parse_tilecfg
from fpu_core.trace import CoreTracer
from fpu_core.x87 import X87_INIT, x87_registers
from fpu_core.xfeature import (
    XFEATURE_FP,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_SSE,
    XFEATURE_MASK_XTILE,
    XFEATURE_SSE,
    XFEATURE_XTILE_CFG,
    XFEATURE_XTILE_DATA,
    for_each_set_bit,
)

if TYPE_CHECKING:
    from fpu_core.fpu import Fpu


class Vector(enum.IntEnum):
    """Exception vectors the model raises. SDM vol. 3, table 6-1."""

    UD = 6
    NM = 7
    GP = 13
    PF = 14


@dataclass(slots=True)
class CpuCounters:
    """What the mail's claims are counted with. Bytes are register bytes moved between CPU and memory images."""

    saves: int = 0
    restores: int = 0
    bytes_saved: int = 0
    bytes_restored: int = 0
    xfd_writes: int = 0
    #: Images copied in memory, and XFD copied from one container to another: ``three_buffer`` alone does either.
    bytes_copied: int = 0
    xfd_copies: int = 0


class Cpu:
    """One logical processor. ``nr`` is its number; masks are xfeature masks."""

    __slots__ = (
        "config",
        "counters",
        "cr0_ts",
        "current",
        "eager",
        "interrupted",
        "kernel_fpu_allowed",
        "mxcsr",
        "nr",
        "online",
        "owner",
        "regs",
        "softirq_count",
        "tracer",
        "xcr0",
        "xfd",
        "xfd_cache",
        "xfd_err",
        "xinuse",
        "xss",
    )

    def __init__(self, nr: int, config: FpuConfig, tracer: CoreTracer | None = None) -> None:
        self.nr = nr
        self.config = config
        self.listen(tracer)
        #: XCR0 and XSS as the kernel programs them at boot; a guest's own XCR0 is loaded around its window.
        self.xcr0 = config.xcr0
        self.xss = config.xss
        #: The IA32_XFD register, and the kernel's cache of it (per-CPU xfd_state).
        self.xfd = config.init_xfd
        self.xfd_cache = config.init_xfd
        self.xfd_err = 0
        self.cr0_ts = False
        #: XINUSE: components not in their init state. Bit 1 is set too when only MXCSR differs from its init value.
        self.xinuse = 0
        self.mxcsr = MXCSR_INIT
        self.regs: dict[int, bytearray] = {}
        #: Whose registers these are (fpu_fpregs_owner_ctx), and which task runs.
        self.owner: Fpu | None = None
        self.current: Fpu | None = None
        #: Whether the kernel may begin to use the FPU itself: not while it does, and not before the FPU is set up.
        self.kernel_fpu_allowed = True
        #: How deep soft interrupts are disabled: fpregs_lock() does that, and so does running one.
        self.softirq_count = 0
        #: What a hard interrupt does that hits code under fpregs_lock(); None nearly always. Tests set it.
        self.interrupted: Callable[[Cpu], None] | None = None
        self.online = True
        self.counters = CpuCounters()

    def listen(self, tracer: CoreTracer | None) -> None:
        """Tell ``tracer`` of every operation from now on."""
        self.tracer = tracer
        #: No save and no restore is elided: somebody listens, or the host's images are in the standard format, where
        #: MXCSR is kept outside XSTATE_BV and so may have to be loaded from an image that says all is in init state.
        self.eager = tracer is not None or not self.config.compacted

    # -- XFD ---------------------------------------------------------------------------------------------------------

    def xfd_set_state(self, xfd: int) -> None:
        """Write IA32_XFD and its cache, always together. Source: xstate.h, xfd_set_state()."""
        self.xfd = self.xfd_cache = xfd
        self.counters.xfd_writes += 1
        if self.tracer is not None:
            self.tracer.write_xfd(xfd)

    def xfd_update_state(self, xfd: int) -> None:
        """Write IA32_XFD if the cache says it differs. On a host without XFD both are 0 and never do."""
        if self.xfd_cache != xfd:
            self.xfd_set_state(xfd)

    # -- registers ---------------------------------------------------------------------------------------------------

    def register_fault(self, feature: int, xcr0: int) -> Vector | None:
        """Return what an instruction that uses ``feature`` raises under ``xcr0``: #UD, #NM, or nothing.

        XFD_ERR is loaded, not ORed, and only by an XFD-caused #NM. Sources: SDM vol. 1, 13.14; the CR0.TS rule: KVM's
        is_xfd_nm_fault().
        """
        needed = XFEATURE_MASK_XTILE if 1 << feature & XFEATURE_MASK_XTILE else 1 << feature
        if needed & ~XFEATURE_MASK_FPSSE & ~xcr0:
            return Vector.UD
        if self.cr0_ts:
            return Vector.NM
        if self.xfd >> feature & 1:
            self.xfd_err = self.xfd & xcr0 & 1 << feature
            return Vector.NM
        return None

    def read_register(self, feature: int) -> bytes:
        """Return the bytes of component ``feature``, init values where it is in its init state; MXCSR at FP 24..27."""
        size = self.config.table.size_bytes(feature)
        if self.xinuse >> feature & 1 and feature in self.regs:
            raw = bytearray(self.regs[feature])
        else:
            raw = bytearray(X87_INIT if feature == XFEATURE_FP else size)
        if feature == XFEATURE_FP:
            raw[MXCSR_OFFSET : MXCSR_OFFSET + 4] = self.mxcsr.to_bytes(4, "little")
            raw[MXCSR_OFFSET + 4 : MXCSR_OFFSET + 8] = self.config.mxcsr_mask.to_bytes(4, "little")
        return bytes(raw)

    def write_register(self, feature: int, offset: int, data: bytes) -> Vector | None:
        """Load ``data`` at ``offset`` of ``feature``; #GP for reserved MXCSR bits, ``FieldError`` out of range.

        The caller has asked ``register_fault`` first: this is the effect of an instruction that did not fault.
        """
        size = self.config.table.size_bytes(feature)
        if offset < 0 or not data or offset + len(data) > size:
            raise FieldError("data", f"1..{size} bytes that end at or before byte {size} of the component", len(data))
        if feature == XFEATURE_FP and offset < MXCSR_OFFSET + 8 and offset + len(data) > MXCSR_OFFSET:
            return self._write_mxcsr(offset, data)
        raw = self._writable(feature)
        raw[offset : offset + len(data)] = data
        if feature == XFEATURE_FP:
            raw[:] = x87_registers(raw, self.config.silicon)
        self.mark_in_use(1 << feature)
        return None

    def _write_mxcsr(self, offset: int, data: bytes) -> Vector | None:
        if offset != MXCSR_OFFSET or len(data) != 4:
            raise FieldError("data", "exactly the 4 bytes of MXCSR where a write touches bytes 24..31", len(data))
        value = int.from_bytes(data, "little")
        if value & ~self.config.mxcsr_mask:
            return Vector.GP
        self.set_mxcsr(value)
        return None

    def set_mxcsr(self, value: int) -> None:
        """Load MXCSR; away from 0x1f80 it counts as SSE state in use, as XSAVEC and XSAVES see it."""
        self.mxcsr = value
        if value != MXCSR_INIT:
            self._writable(XFEATURE_SSE)
            self.xinuse |= XFEATURE_MASK_SSE
        else:
            self.mark_in_use(self.xinuse & XFEATURE_MASK_SSE)

    def mark_in_use(self, mask: int) -> None:
        """The components of ``mask`` were loaded. Whether they now are in use is the processor's to say."""
        self.xinuse |= mask
        if self.config.silicon.xinuse_by_content:
            for nr in for_each_set_bit(mask):
                if self._holds_init(nr):
                    self.xinuse &= ~(1 << nr)

    def _holds_init(self, feature: int) -> bool:
        if feature == XFEATURE_FP:
            return self.regs[feature] == X87_INIT
        if feature == XFEATURE_SSE and self.mxcsr != MXCSR_INIT:
            return False
        raw = self.regs[feature]
        return raw == bytes(len(raw))

    def _writable(self, feature: int) -> bytearray:
        """The component's bytes, at their init values where it was in its init state."""
        raw = self.regs.get(feature)
        if raw is None:
            raw = self.regs[feature] = bytearray(self.config.table.size_bytes(feature))
        elif self.xinuse >> feature & 1:
            return raw
        raw[:] = X87_INIT if feature == XFEATURE_FP else bytes(len(raw))
        return raw

    def load_component(self, feature: int, image: bytearray, offset: int, size: int) -> None:
        """Copy a component out of a memory image; ``mark_in_use`` follows."""
        raw = self.regs.get(feature)
        if raw is None:
            raw = self.regs[feature] = bytearray(size)
        if feature == XFEATURE_FP:
            raw[:] = x87_registers(image[:size], self.config.silicon)
        else:
            raw[:] = memoryview(image)[offset : offset + size]

    def xgetbv1(self) -> int:
        """XGETBV with ECX = 1: XCR0 and XINUSE. XFD hides a component from saves, not from here. SDM vol. 1, 13.2."""
        return self.xcr0 & self.xinuse

    def init_components(self, mask: int) -> None:
        """Put the components of ``mask`` into their init state; MXCSR goes with SSE."""
        self.xinuse &= ~mask
        if mask & XFEATURE_MASK_SSE:
            self.mxcsr = MXCSR_INIT

    # -- tiles -------------------------------------------------------------------------------------------------------

    def tile_instruction(self, op: TileOp, tile: int, memory: bytes, xcr0: int) -> Vector | bytes:
        """Execute a tile instruction: the vector it raises, or the bytes it stores (empty where it stores none).

        ``memory`` is what the instruction reads: 64 bytes for LDTILECFG, up to 1,024 (rows of 64) for TILELOADD.
        """
        if xcr0 & XFEATURE_MASK_XTILE != XFEATURE_MASK_XTILE:
            return Vector.UD
        if self.cr0_ts:
            return Vector.NM
        match op:
            case TileOp.LDTILECFG:
                return self._ldtilecfg(memory)
            case TileOp.STTILECFG:
                return self.read_register(XFEATURE_XTILE_CFG)
            case TileOp.TILERELEASE:
                self.init_components(XFEATURE_MASK_XTILE)
                return b""
            case _:
                return self._tile_access(op, tile, memory, xcr0)

    def _ldtilecfg(self, memory: bytes) -> Vector | bytes:
        config = parse_tilecfg(memory)
        if config is None:
            return Vector.GP
        self.init_components(XFEATURE_MASK_XTILE)  # every LDTILECFG zeroes all tiles
        if config.palette:
            self.write_register(XFEATURE_XTILE_CFG, 0, memory)
        return b""

    def _tile_access(self, op: TileOp, tile: int, memory: bytes, xcr0: int) -> Vector | bytes:
        config = self._tile_config()
        shape = config.shapes[tile]
        if config.start_row >= shape.rows:  # a tile that is not configured has no rows
            return Vector.UD
        fault = self.register_fault(XFEATURE_XTILE_DATA, xcr0)
        if fault is not None:
            return fault
        if (
            config.start_row
        ):  # where an interrupted access goes on; done, it is 0 again. SDM vol. 2, zero_tilecfg_start()
            self.write_register(XFEATURE_XTILE_CFG, TILECFG_START_ROW, b"\0")
        old = self.read_register(XFEATURE_XTILE_DATA)[tile * TILE_BYTES : (tile + 1) * TILE_BYTES]
        if op is TileOp.TILESTORED:
            return old
        new = bytes(TILE_BYTES) if op is TileOp.TILEZERO else load_tile(shape, config.start_row, old, memory)
        self.write_register(XFEATURE_XTILE_DATA, tile * TILE_BYTES, new)
        return b""

    def _tile_config(self) -> TileConfig:
        # XRSTOR loads what LDTILECFG would refuse (an image comes from userspace): no tile is configured by it.
        return parse_tilecfg(self.read_register(XFEATURE_XTILE_CFG)) or INIT_TILE_CONFIG

    # -- for readers -------------------------------------------------------------------------------------------------

    def observable(self) -> dict[int, bytes]:
        """Return what software could see now: component -> bytes, of components in use and not hidden by XFD."""
        visible = self.xinuse & ~self.xfd
        return {nr: self.read_register(nr) for nr in for_each_set_bit(visible)}

    def interrupt_point(self) -> None:
        """A place under fpregs_lock() where a hard interrupt can come in: the lock holds soft ones off only.

        Only an interrupt can see that the lock is held, so it is counted here and nowhere on the hot path.
        """
        if self.interrupted is not None:
            self.softirq_count += 1
            try:
                self.interrupted(self)
            finally:
                self.softirq_count -= 1

    def __repr__(self) -> str:
        return f"<Cpu {self.nr} xinuse={self.xinuse:#x} xfd={self.xfd:#x} owner={self.owner}>"
