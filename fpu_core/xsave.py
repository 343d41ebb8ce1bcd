"""The XSAVE instructions: registers to a memory image and back, byte by byte as the processor does it.

All of them see a component whose XFD bit is set as if XINUSE were 0, and a restore of one that XSTATE_BV says is there
raises #NM. A fault leaves the registers as they were.

The init optimisation is modelled. The modified optimisation is not: XSAVEOPT and XSAVES may leave out a component that
was loaded from the same image and has not changed since, because the image still holds it. Nobody writes a container
whose registers are live, so what is left out cannot be told from what is written.

Source: Intel SDM vol. 1, 13.7 (XSAVE), 13.8 (XRSTOR), 13.9 (XSAVEOPT), 13.10 (XSAVEC), 13.11 (XSAVES),
13.12 (XRSTORS), 13.14 (XFD).
"""

from __future__ import annotations

from typing import Final, Protocol

from fpu_core.cpu import Cpu, Vector
from fpu_core.layout import (
    MXCSR_OFFSET,
    XMM_SPACE_OFFSET,
    XSAVE_EXTENDED_OFFSET,
    XSTATE_BV_OFFSET,
)
from fpu_core.x87 import X87_INIT
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
#: Header bytes that a restore wants zero, behind XCOMP_BV: 16..63, and in the standard form of XRSTOR only 16..23.
_RESERVED: Final = slice(XSTATE_BV_OFFSET + 16, XSAVE_EXTENDED_OFFSET)
_RESERVED_STANDARD: Final = slice(XSTATE_BV_OFFSET + 16, XSTATE_BV_OFFSET + 24)


class XsaveImage(Protocol):
    """What the instructions read and write: a container, or an image in somebody's memory (``xsave_insn``)."""

    regs: bytearray
    xstate_bv: int
    xcomp_bv: int


def xsave_compacted(cpu: Cpu, image: XsaveImage, rfbm: int) -> None:
    """XSAVEC or XSAVES: write the components in use, the layout that ``rfbm`` makes, and nothing for the others."""
    bv = rfbm & cpu.xinuse & ~cpu.xfd
    image.xstate_bv = bv
    image.xcomp_bv = rfbm | XCOMP_BV_COMPACTED_FORMAT
    _store(cpu, image, bv, bv, cpu.config.table.offsets(rfbm, compacted=True))


def xsave_standard(cpu: Cpu, image: XsaveImage, rfbm: int, *, optimized: bool) -> None:
    """XSAVE or XSAVEOPT: standard layout. XSAVE writes init values for components not in use, XSAVEOPT leaves them.

    Bits of XSTATE_BV outside ``rfbm`` keep their value, and so does XCOMP_BV. XINUSE[1] here is about XMM alone, not
    MXCSR, which both instructions store whenever RFBM has SSE or YMM.
    """
    inuse = cpu.xinuse & ~cpu.xfd
    if inuse & XFEATURE_MASK_SSE and not any(cpu.regs.get(XFEATURE_SSE, b"")):
        inuse &= ~XFEATURE_MASK_SSE
    image.xstate_bv = (image.xstate_bv & ~rfbm) | (rfbm & inuse)
    offsets = cpu.config.table.offsets(rfbm, compacted=False)
    _store(cpu, image, rfbm & inuse if optimized else rfbm, inuse, offsets)
    if rfbm & (XFEATURE_MASK_SSE | XFEATURE_MASK_YMM):
        _store_mxcsr(cpu, image)


def _store(cpu: Cpu, image: XsaveImage, mask: int, inuse: int, offsets: dict[int, int]) -> None:
    """Write the components of ``mask``; one not in ``inuse`` is written with its init values."""
    regs = image.regs
    written = 0
    for nr in for_each_set_bit(mask):
        size = cpu.config.table.size_bytes(nr)
        written += size
        if nr == XFEATURE_FP:
            _store_x87(cpu, image, live=bool(inuse & 1))
            continue
        live = inuse >> nr & 1 and nr in cpu.regs
        regs[offsets[nr] : offsets[nr] + size] = cpu.regs[nr] if live else bytes(size)
        if nr == XFEATURE_SSE:
            _store_mxcsr(cpu, image)
    cpu.counters.bytes_saved += written


def _store_x87(cpu: Cpu, image: XsaveImage, *, live: bool) -> None:
    raw = cpu.regs[XFEATURE_FP] if live else X87_INIT
    image.regs[0:MXCSR_OFFSET] = raw[0:MXCSR_OFFSET]
    image.regs[_MXCSR_END:XMM_SPACE_OFFSET] = raw[_MXCSR_END:XMM_SPACE_OFFSET]


def _store_mxcsr(cpu: Cpu, image: XsaveImage) -> None:
    image.regs[MXCSR_OFFSET : MXCSR_OFFSET + 4] = cpu.mxcsr.to_bytes(4, "little")
    image.regs[MXCSR_OFFSET + 4 : _MXCSR_END] = cpu.config.mxcsr_mask.to_bytes(4, "little")


def xrstor(cpu: Cpu, image: XsaveImage, rfbm: int, *, supervisor: bool) -> Vector | None:
    """XRSTOR or XRSTORS (``supervisor``): load the components XSTATE_BV has, put the others of ``rfbm`` in init state.

    Returns the vector of the fault, with the registers unchanged, or None.
    """
    rfbm &= cpu.xcr0 | (cpu.xss if supervisor else 0)
    fault = _xrstor_fault(cpu, image, rfbm, supervisor=supervisor)
    if fault is not None:
        return fault
    bv = rfbm & image.xstate_bv
    compacted = bool(image.xcomp_bv & XCOMP_BV_COMPACTED_FORMAT)
    offsets = (
        cpu.config.table.offsets(image.xcomp_bv & ~XCOMP_BV_COMPACTED_FORMAT, compacted=True)
        if compacted
        else cpu.config.table.offsets(rfbm, compacted=False)
    )
    cpu.init_components(rfbm & ~bv)
    _load(cpu, image, bv, offsets)
    if bv & XFEATURE_MASK_SSE or (not compacted and rfbm & (XFEATURE_MASK_SSE | XFEATURE_MASK_YMM)):
        cpu.set_mxcsr(_mxcsr(image))
    return None


def _load(cpu: Cpu, image: XsaveImage, bv: int, offsets: dict[int, int]) -> None:
    loaded = 0
    for nr in for_each_set_bit(bv):
        size = cpu.config.table.size_bytes(nr)
        cpu.load_component(nr, image.regs, offsets[nr], size)
        loaded += size
    cpu.mark_in_use(bv)
    cpu.counters.bytes_restored += loaded


def _mxcsr(image: XsaveImage) -> int:
    return int.from_bytes(image.regs[MXCSR_OFFSET : MXCSR_OFFSET + 4], "little")


def _xrstor_fault(cpu: Cpu, image: XsaveImage, rfbm: int, *, supervisor: bool) -> Vector | None:
    """What the instruction checks before it changes anything. #GP first, then #NM. SDM vol. 1, 13.8.1 and 13.12."""
    xcomp_bv, bv = image.xcomp_bv, image.xstate_bv
    supported = cpu.xcr0 | (cpu.xss if supervisor else 0)
    if xcomp_bv & XCOMP_BV_COMPACTED_FORMAT and (supervisor or cpu.config.caps.XSAVEC):
        layout = xcomp_bv & ~XCOMP_BV_COMPACTED_FORMAT
        if layout & ~supported or bv & ~layout:
            return Vector.GP
    elif supervisor or xcomp_bv or bv & ~cpu.xcr0:
        return Vector.GP
    if any(image.regs[_RESERVED if supervisor or xcomp_bv else _RESERVED_STANDARD]):
        return Vector.GP
    if _loads_mxcsr(image, rfbm) and _mxcsr(image) & ~cpu.config.mxcsr_mask:
        return Vector.GP
    if rfbm & bv & cpu.xfd:
        cpu.xfd_err = rfbm & bv & cpu.xfd
        return Vector.NM
    return None


def _loads_mxcsr(image: XsaveImage, rfbm: int) -> bool:
    if image.xcomp_bv & XCOMP_BV_COMPACTED_FORMAT:
        return bool(rfbm & image.xstate_bv & XFEATURE_MASK_SSE)
    return bool(rfbm & (XFEATURE_MASK_SSE | XFEATURE_MASK_YMM))


def fxsave(cpu: Cpu, image: XsaveImage) -> None:
    """FXSAVE: x87, SSE and MXCSR into bytes 0..415; there is no header and no init state to leave out."""
    _store(cpu, image, XFEATURE_MASK_FPSSE, cpu.xinuse, {XFEATURE_FP: 0, XFEATURE_SSE: XMM_SPACE_OFFSET})
    _store_mxcsr(cpu, image)


def fxrstor(cpu: Cpu, image: XsaveImage) -> Vector | None:
    """FXRSTOR: load x87, SSE and MXCSR."""
    if _mxcsr(image) & ~cpu.config.mxcsr_mask:
        return Vector.GP
    cpu.init_components(XFEATURE_MASK_FPSSE)
    _load(cpu, image, XFEATURE_MASK_FPSSE, {XFEATURE_FP: 0, XFEATURE_SSE: XMM_SPACE_OFFSET})
    cpu.set_mxcsr(_mxcsr(image))
    return None
