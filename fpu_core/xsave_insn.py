"""The XSAVE instructions as software executes them: on memory at an address, with everything they may raise.

The kernel's own saves and restores of a container call ``xsave.py``; a signal frame, a guest and a program at ring 3
come through here. What is stored, loaded and refused is the same code. Memory that is too short is the caller's
mistake: page faults are not modelled.

Source: Intel SDM vol. 2, XSAVE, XSAVEC, XSAVEOPT, XRSTOR (exceptions).
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from fpu_core.cpu import Cpu, Vector
from fpu_core.errors import FieldError
from fpu_core.layout import FXSAVE_SIZE_BYTES, XCOMP_BV_OFFSET, XSAVE_EXTENDED_OFFSET, XSTATE_BV_OFFSET
from fpu_core.xfeature import XCOMP_BV_COMPACTED_FORMAT, for_each_set_bit
from fpu_core.xsave import fxrstor, fxsave, xrstor, xsave_compacted, xsave_standard

_U64: Final = struct.Struct("<Q")
#: What the memory operand has to be aligned to.
XSAVE_ALIGN: Final = 64
_FX_ALIGN: Final = 16


class XsaveInsn(enum.Enum):
    """The instructions any program may execute. The value is the mnemonic and names the CPUID flag."""

    XSAVE = "xsave"
    XSAVEOPT = "xsaveopt"
    XSAVEC = "xsavec"
    XRSTOR = "xrstor"

    @property
    def stores(self) -> bool:
        """Whether it writes memory."""
        return self is not XsaveInsn.XRSTOR


class MemoryImage:
    """An image in plain memory: the header words are where the processor has them."""

    __slots__ = ("regs",)

    def __init__(self, memory: bytearray) -> None:
        self.regs = memory

    @property
    def xstate_bv(self) -> int:
        """XSTATE_BV, bytes 512..519."""
        return int(_U64.unpack_from(self.regs, XSTATE_BV_OFFSET)[0])

    @xstate_bv.setter
    def xstate_bv(self, value: int) -> None:
        _U64.pack_into(self.regs, XSTATE_BV_OFFSET, value)

    @property
    def xcomp_bv(self) -> int:
        """XCOMP_BV, bytes 520..527."""
        return int(_U64.unpack_from(self.regs, XCOMP_BV_OFFSET)[0])

    @xcomp_bv.setter
    def xcomp_bv(self, value: int) -> None:
        _U64.pack_into(self.regs, XCOMP_BV_OFFSET, value)


def xsave_to_memory(cpu: Cpu, insn: XsaveInsn, memory: bytearray, rfbm: int, *, address: int = 0) -> Vector | None:
    """Execute XSAVE, XSAVEOPT or XSAVEC with EDX:EAX = ``rfbm`` on ``memory``, which lies at ``address``.

    Returns the vector of a fault, with ``memory`` unchanged, or None. ``FieldError`` where ``memory`` is too short.
    """
    fault = _fault(cpu, insn, address)
    if fault is not None:
        return fault
    rfbm &= cpu.xcr0
    compacted = insn is XsaveInsn.XSAVEC
    size = cpu.config.table.calculate_size(rfbm, compacted=compacted)
    _need(memory, max(XSAVE_EXTENDED_OFFSET, size), rfbm)
    if compacted:
        xsave_compacted(cpu, MemoryImage(memory), rfbm)
    else:
        xsave_standard(cpu, MemoryImage(memory), rfbm, optimized=insn is XsaveInsn.XSAVEOPT)
    return None


def xrstor_from_memory(cpu: Cpu, memory: bytes | bytearray, rfbm: int, *, address: int = 0) -> Vector | None:
    """Execute XRSTOR with EDX:EAX = ``rfbm`` on ``memory``, which lies at ``address``.

    Returns the vector of a fault, with the registers unchanged, or None. ``FieldError`` where ``memory`` is too short
    for what would be loaded.
    """
    fault = _fault(cpu, XsaveInsn.XRSTOR, address)
    if fault is not None:
        return fault
    _need(memory, XSAVE_EXTENDED_OFFSET, 0)
    image = MemoryImage(bytearray(memory))
    ends = loaded_component_ends(cpu, image, rfbm)
    _need(memory, max(ends.values(), default=0), image.xstate_bv)
    return xrstor(cpu, image, rfbm, supervisor=False)


def loaded_component_ends(cpu: Cpu, image: MemoryImage, rfbm: int) -> dict[int, int]:
    """Return where each component ends that XRSTOR would load from ``image``, which need not reach that far.

    In the compacted format XCOMP_BV says where a component lies, and still only those of XSTATE_BV are read. Empty
    where the header is one that XRSTOR refuses for its layout, whatever is there.
    """
    table, found = cpu.config.table, rfbm & cpu.xcr0 & image.xstate_bv
    layout = image.xcomp_bv & ~XCOMP_BV_COMPACTED_FORMAT
    compacted = image.xcomp_bv != layout
    if layout & ~cpu.xcr0 or (compacted and found & ~layout):
        return {}
    offsets = table.offsets(layout if compacted else found, compacted=compacted)
    return {nr: offsets[nr] + table.size_bytes(nr) for nr in for_each_set_bit(found)}


def fxsave_to_memory(cpu: Cpu, memory: bytearray, *, address: int = 0) -> Vector | None:
    """Execute FXSAVE on ``memory``, of which it writes bytes 0..415. Faults as for ``xsave_to_memory``."""
    fault = _fx_fault(cpu, memory, address)
    if fault is None:
        fxsave(cpu, MemoryImage(memory))
    return fault


def fxrstor_from_memory(cpu: Cpu, memory: bytes | bytearray, *, address: int = 0) -> Vector | None:
    """Execute FXRSTOR on ``memory``. Faults as for ``xrstor_from_memory``."""
    fault = _fx_fault(cpu, memory, address)
    return fault if fault is not None else fxrstor(cpu, MemoryImage(bytearray(memory)))


def _fx_fault(cpu: Cpu, memory: bytes | bytearray, address: int) -> Vector | None:
    if not cpu.config.caps.FXSR:
        return Vector.UD
    if cpu.cr0_ts:
        return Vector.NM
    if address % _FX_ALIGN:
        return Vector.GP
    if len(memory) < FXSAVE_SIZE_BYTES:
        raise FieldError("memory", f"at least {FXSAVE_SIZE_BYTES} bytes", f"{len(memory)} bytes")
    return None


def _fault(cpu: Cpu, insn: XsaveInsn, address: int) -> Vector | None:
    """What is checked before memory is looked at, in that order."""
    if not getattr(cpu.config.caps, insn.name if insn.stores else "XSAVE"):
        return Vector.UD
    if cpu.cr0_ts:
        return Vector.NM
    return Vector.GP if address % XSAVE_ALIGN else None


def _need(memory: bytes | bytearray, size: int, mask: int) -> None:
    if len(memory) < size:
        raise FieldError("memory", f"at least {size} bytes for an image of {mask:#x}", f"{len(memory)} bytes")
