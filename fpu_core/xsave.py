"""The XSAVE instructions: registers to a memory image and back, byte by byte as the processor does it.

All of them see a component whose XFD bit is set as if XINUSE were 0, and a restore of one that XSTATE_BV says is there
raises #NM. A fault leaves the registers as they were.

Source: Intel SDM vol. 1, 13.7 (XSAVE), 13.8 (XRSTOR), 13.9 (XSAVEOPT), 13.10 (XSAVEC), 13.11 (XSAVES),
13.12 (XRSTORS), 13.14 (XFD).
"""

from __future__ import annotations

from typing import Final

from fpu_core.cpu import Cpu, Vector
from fpu_core.fpstate import FCW_INIT, Fpstate
from fpu_core.layout import (
    MXCSR_OFFSET,
    XMM_SPACE_OFFSET,
    XSAVE_EXTENDED_OFFSET,
    XSTATE_BV_OFFSET,
)
from fpu_core.xfeature import (
    XCOMP_BV_COMPACTED_FORMAT,
    XFEATURE_FP,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_SSE,
    XFEATURE_MASK_YMM,
    XFEATURE_SSE,
    for_each_set_bit,
)

_MXCSR_END: Final = MXCSR_OFFSET + 8
_RESERVED_HEADER: Final = slice(XSTATE_BV_OFFSET + 16, XSAVE_EXTENDED_OFFSET)


def xsave_compacted(cpu: Cpu, fpstate: Fpstate, rfbm: int) -> None:
    """XSAVEC or XSAVES: write the components in use, the layout that ``rfbm`` makes, and nothing for the others."""
    bv = rfbm & cpu.xinuse & ~cpu.xfd
    fpstate.xstate_bv = bv
    fpstate.xcomp_bv = rfbm | XCOMP_BV_COMPACTED_FORMAT
    _store(cpu, fpstate, bv, bv, cpu.config.table.offsets(rfbm, compacted=True))


def xsave_standard(cpu: Cpu, fpstate: Fpstate, rfbm: int, *, optimized: bool) -> None:
    """XSAVE or XSAVEOPT: standard layout. XSAVE writes init values for components not in use, XSAVEOPT leaves them.

    Bits of XSTATE_BV outside ``rfbm`` keep their value. XINUSE[1] here is about XMM alone, not MXCSR, which both
    instructions store whenever RFBM has SSE or YMM.
    """
    inuse = cpu.xinuse & ~cpu.xfd
    if inuse & XFEATURE_MASK_SSE and not any(cpu.regs.get(XFEATURE_SSE, b"")):
        inuse &= ~XFEATURE_MASK_SSE
    fpstate.xstate_bv = (fpstate.xstate_bv & ~rfbm) | (rfbm & inuse)
    fpstate.xcomp_bv = 0
    offsets = cpu.config.table.offsets(rfbm, compacted=False)
    _store(cpu, fpstate, rfbm & inuse if optimized else rfbm, inuse, offsets)
    if rfbm & (XFEATURE_MASK_SSE | XFEATURE_MASK_YMM):
        _store_mxcsr(cpu, fpstate)


def _store(cpu: Cpu, fpstate: Fpstate, mask: int, inuse: int, offsets: dict[int, int]) -> None:
    """Write the components of ``mask``; one not in ``inuse`` is written with its init values."""
    image = fpstate.regs
    written = 0
    for nr in for_each_set_bit(mask):
        size = cpu.config.table.size_bytes(nr)
        written += size
        if nr == XFEATURE_FP:
            _store_x87(cpu, fpstate, live=bool(inuse & 1))
            continue
        live = inuse >> nr & 1 and nr in cpu.regs
        image[offsets[nr] : offsets[nr] + size] = cpu.regs[nr] if live else bytes(size)
        if nr == XFEATURE_SSE:
            _store_mxcsr(cpu, fpstate)
    cpu.counters.bytes_saved += written


def _store_x87(cpu: Cpu, fpstate: Fpstate, *, live: bool) -> None:
    if live:
        raw = cpu.regs[XFEATURE_FP]
    else:
        raw = bytearray(XMM_SPACE_OFFSET)
        raw[0:2] = FCW_INIT.to_bytes(2, "little")
    fpstate.regs[0:MXCSR_OFFSET] = raw[0:MXCSR_OFFSET]
    fpstate.regs[_MXCSR_END:XMM_SPACE_OFFSET] = raw[_MXCSR_END:XMM_SPACE_OFFSET]


def _store_mxcsr(cpu: Cpu, fpstate: Fpstate) -> None:
    fpstate.regs[MXCSR_OFFSET : MXCSR_OFFSET + 4] = cpu.mxcsr.to_bytes(4, "little")
    fpstate.regs[MXCSR_OFFSET + 4 : _MXCSR_END] = cpu.config.mxcsr_mask.to_bytes(4, "little")


def xrstor(cpu: Cpu, fpstate: Fpstate, rfbm: int, *, supervisor: bool) -> Vector | None:
    """XRSTOR or XRSTORS (``supervisor``): load the components XSTATE_BV has, put the others of ``rfbm`` in init state.

    Returns the vector of the fault, with the registers unchanged, or None.
    """
    rfbm &= cpu.xcr0 | (cpu.xss if supervisor else 0)
    fault = _xrstor_fault(cpu, fpstate, rfbm, supervisor=supervisor)
    if fault is not None:
        return fault
    bv = rfbm & fpstate.xstate_bv
    compacted = bool(fpstate.xcomp_bv & XCOMP_BV_COMPACTED_FORMAT)
    offsets = (
        cpu.config.table.offsets(fpstate.xcomp_bv & ~XCOMP_BV_COMPACTED_FORMAT, compacted=True)
        if compacted
        else cpu.config.table.offsets(rfbm, compacted=False)
    )
    cpu.init_components(rfbm & ~bv)
    _load(cpu, fpstate, bv, offsets)
    if bv & XFEATURE_MASK_SSE or (not compacted and rfbm & (XFEATURE_MASK_SSE | XFEATURE_MASK_YMM)):
        cpu.set_mxcsr(_mxcsr(fpstate))
    return None


def _load(cpu: Cpu, fpstate: Fpstate, bv: int, offsets: dict[int, int]) -> None:
    loaded = 0
    for nr in for_each_set_bit(bv):
        size = cpu.config.table.size_bytes(nr)
        cpu.load_component(nr, fpstate.regs, offsets[nr], size)
        loaded += size
    cpu.xinuse |= bv
    cpu.counters.bytes_restored += loaded


def _mxcsr(fpstate: Fpstate) -> int:
    return int.from_bytes(fpstate.regs[MXCSR_OFFSET : MXCSR_OFFSET + 4], "little")


def _xrstor_fault(cpu: Cpu, fpstate: Fpstate, rfbm: int, *, supervisor: bool) -> Vector | None:
    """What the instruction checks before it changes anything. #GP first, then #NM. SDM vol. 1, 13.8.1 and 13.12."""
    xcomp_bv, bv = fpstate.xcomp_bv, fpstate.xstate_bv
    supported = cpu.xcr0 | (cpu.xss if supervisor else 0)
    if xcomp_bv & XCOMP_BV_COMPACTED_FORMAT:
        layout = xcomp_bv & ~XCOMP_BV_COMPACTED_FORMAT
        if layout & ~supported or bv & ~layout:
            return Vector.GP
    elif supervisor or xcomp_bv or bv & ~cpu.xcr0:
        return Vector.GP
    if any(fpstate.regs[_RESERVED_HEADER]):
        return Vector.GP
    if _loads_mxcsr(fpstate, rfbm) and _mxcsr(fpstate) & ~cpu.config.mxcsr_mask:
        return Vector.GP
    if rfbm & bv & cpu.xfd:
        cpu.xfd_err = rfbm & bv & cpu.xfd
        return Vector.NM
    return None


def _loads_mxcsr(fpstate: Fpstate, rfbm: int) -> bool:
    if fpstate.xcomp_bv & XCOMP_BV_COMPACTED_FORMAT:
        return bool(rfbm & fpstate.xstate_bv & XFEATURE_MASK_SSE)
    return bool(rfbm & (XFEATURE_MASK_SSE | XFEATURE_MASK_YMM))


def fxsave(cpu: Cpu, fpstate: Fpstate) -> None:
    """FXSAVE: x87 and SSE into 512 bytes, on a host without XSAVE."""
    _store(cpu, fpstate, XFEATURE_MASK_FPSSE, cpu.xinuse, {XFEATURE_FP: 0, XFEATURE_SSE: XMM_SPACE_OFFSET})
    _store_mxcsr(cpu, fpstate)
    fpstate.xstate_bv = cpu.xinuse & XFEATURE_MASK_FPSSE


def fxrstor(cpu: Cpu, fpstate: Fpstate) -> Vector | None:
    """FXRSTOR: load x87, SSE and MXCSR."""
    if _mxcsr(fpstate) & ~cpu.config.mxcsr_mask:
        return Vector.GP
    cpu.init_components(XFEATURE_MASK_FPSSE)
    _load(cpu, fpstate, XFEATURE_MASK_FPSSE, {XFEATURE_FP: 0, XFEATURE_SSE: XMM_SPACE_OFFSET})
    cpu.set_mxcsr(_mxcsr(fpstate))
    return None
