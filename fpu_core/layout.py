"""Where each component lies in an XSAVE image, and how large an image is.

Two layouts exist. In the *standard* one a component has the offset CPUID gives it, whatever else is there. In the
*compacted* one components follow each other in ascending order, each aligned to 64 bytes where CPUID says so; which
components take part is written in the image itself (XCOMP_BV), so an offset is always asked of an image's own mask and
never of a global table.

Sources: arch/x86/kernel/fpu/xstate.c, xstate_calculate_size() and setup_xstate_cache(); Intel SDM vol. 1, 13.4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fpu_core.cpuid import CpuidProfile, CpuidRegs
from fpu_core.errors import FieldError
from fpu_core.xfeature import XFEATURE_FP, XFEATURE_SSE, for_each_set_bit

#: The legacy region (FXSAVE format) and the header. SDM vol. 1, 13.4.1 and 13.4.2.
FXSAVE_SIZE_BYTES: Final = 512
XSAVE_HDR_SIZE_BYTES: Final = 64
XSAVE_EXTENDED_OFFSET: Final = FXSAVE_SIZE_BYTES + XSAVE_HDR_SIZE_BYTES

XSTATE_BV_OFFSET: Final = 512
XCOMP_BV_OFFSET: Final = 520
MXCSR_OFFSET: Final = 24
#: Where the XMM registers start: Linux counts bytes 0..159, MXCSR among them, as the x87 component.
XMM_SPACE_OFFSET: Final = 160
XMM_SPACE_SIZE_BYTES: Final = 256

_ALIGN: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One component as CPUID.0xD.i describes it; in bytes. ``std_offset`` is None for supervisor components."""

    nr: int
    size_bytes: int
    std_offset: int | None
    align64: bool = False
    supervisor: bool = False
    xfd_capable: bool = False


#: The most that a component's size, or its offset in the standard format, may be, in bytes.
_IMAGE_MAX: Final = 65_536
#: x87 and SSE have no sub-leaf: they are the legacy region. Source: SDM vol. 1, 13.4.1.
LEGACY_COMPONENTS: Final = (
    Component(nr=XFEATURE_FP, size_bytes=XMM_SPACE_OFFSET, std_offset=0),
    Component(nr=XFEATURE_SSE, size_bytes=XMM_SPACE_SIZE_BYTES, std_offset=XMM_SPACE_OFFSET),
)


@dataclass(frozen=True, slots=True)
class ComponentTable:
    """Every component of one processor, and the layouts that follow from them."""

    components: dict[int, Component]
    #: Whether the kernel uses the compacted format on this processor (XSAVEC or XSAVES).
    compacted: bool
    # Both are asked at every check of every invariant, and a processor has few masks.
    _offsets: dict[tuple[int, bool], dict[int, int]] = field(default_factory=dict, repr=False, compare=False)
    _sizes: dict[tuple[int, bool], int] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_profile(cls, profile: CpuidProfile) -> ComponentTable:
        """Read sub-leaves 2..62 of 0xD: size = EAX, offset = EBX, flags = ECX (supervisor, align64, XFD-capable).

        Raises ``FieldError`` for what no processor says: nothing that comes after it could be relied upon.
        """
        table = {component.nr: component for component in LEGACY_COMPONENTS}
        for nr in for_each_set_bit((profile.xcr0_mask | profile.xss_mask) & ~3):
            regs = profile.regs(0xD, nr)
            supervisor = bool(regs.ecx & 1)
            _check_subleaf(nr, regs, in_xcr0=bool(profile.xcr0_mask & 1 << nr))
            table[nr] = Component(
                nr=nr,
                size_bytes=regs.eax,
                std_offset=None if supervisor else regs.ebx,
                align64=bool(regs.ecx & 2),
                supervisor=supervisor,
                xfd_capable=bool(regs.ecx & 4),
            )
        return cls(table, profile.caps.xcompacted)

    def size_bytes(self, nr: int) -> int:
        """Return the size of component ``nr``; ``FieldError`` if the processor has none of that number."""
        return self._component(nr).size_bytes

    def offset(self, mask: int, nr: int, *, compacted: bool) -> int:
        """Return where component ``nr`` lies in an image that holds ``mask``."""
        return self.offsets(mask, compacted=compacted)[nr]

    def offsets(self, mask: int, *, compacted: bool) -> dict[int, int]:
        """Return component number -> offset for an image that holds ``mask``, legacy components always included."""
        key = (mask, compacted)
        found = self._offsets.get(key)
        if found is None:
            found = self._offsets[key] = self._compact(mask) if compacted else self._standard(mask)
        return found

    def calculate_size(self, mask: int, *, compacted: bool) -> int:
        """Return the bytes an image of ``mask`` takes, as xstate_calculate_size() does.

        On a processor without the compacted format a compacted question is answered with the standard offset of the
        topmost component plus its size. A standard question wants the component that *ends* last, which need not be
        the one with the highest number (APX sits in the slot of MPX).
        """
        key = (mask, compacted)
        found = self._sizes.get(key)
        if found is None:
            found = self._sizes[key] = self._size(mask, compacted=compacted)
        return found

    def _size(self, mask: int, *, compacted: bool) -> int:
        extended = mask & ~3
        if not extended:
            return XSAVE_EXTENDED_OFFSET
        if compacted:
            top = extended.bit_length() - 1
            return self.offset(mask, top, compacted=self.compacted) + self.size_bytes(top)
        nrs = [nr for nr in for_each_set_bit(extended) if self._component(nr).std_offset is not None]
        if not nrs:
            return XSAVE_EXTENDED_OFFSET
        last = max(nrs, key=lambda nr: self._component(nr).std_offset or 0)
        return (self._component(last).std_offset or 0) + self.size_bytes(last)

    def _component(self, nr: int) -> Component:
        component = self.components.get(nr)
        if component is None:
            raise FieldError("xfeature", f"one the processor has ({sorted(self.components)})", nr)
        return component

    def _standard(self, mask: int) -> dict[int, int]:
        found = {XFEATURE_FP: 0, XFEATURE_SSE: XMM_SPACE_OFFSET}
        for nr in for_each_set_bit(mask & ~3):
            std_offset = self._component(nr).std_offset
            if std_offset is not None:
                found[nr] = std_offset
        return found

    def _compact(self, mask: int) -> dict[int, int]:
        found = {XFEATURE_FP: 0, XFEATURE_SSE: XMM_SPACE_OFFSET}
        end = XSAVE_EXTENDED_OFFSET
        for nr in for_each_set_bit(mask & ~3):
            component = self._component(nr)
            if component.align64:
                end = (end + _ALIGN - 1) & -_ALIGN
            found[nr] = end
            end += component.size_bytes
        return found


def _check_subleaf(nr: int, regs: CpuidRegs, *, in_xcr0: bool) -> None:
    """A component is managed by XCR0 or by IA32_XSS, as its flag says, and no image is anywhere near 64 KiB.

    Source: SDM vol. 1, 13.2.
    """
    where = f"cpuid leaf 0xD sub-leaf {nr}"
    if in_xcr0 == bool(regs.ecx & 1):
        expected = "a user component (ECX bit 0 clear)" if in_xcr0 else "a supervisor component (ECX bit 0 set)"
        raise FieldError(where, f"{expected}, as {'XCR0' if in_xcr0 else 'IA32_XSS'} has it", hex(regs.ecx))
    if regs.eax > _IMAGE_MAX or (in_xcr0 and regs.ebx > _IMAGE_MAX):
        raise FieldError(where, f"a size and an offset of at most {_IMAGE_MAX} bytes", f"{regs.eax} and {regs.ebx}")
