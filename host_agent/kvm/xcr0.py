"""The validity rules of XCR0: one list, in KVM's order. To a guest every failure is #GP(0), to a VMM it is EINVAL.

Source: arch/x86/kvm/x86.c, __kvm_set_xcr() and kvm_emulate_xsetbv().
"""

from __future__ import annotations

from typing import Final

from fpu_core.xfeature import (
    XFEATURE_MASK_AVX512,
    XFEATURE_MASK_BNDCSR,
    XFEATURE_MASK_BNDREGS,
    XFEATURE_MASK_FP,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_SSE,
    XFEATURE_MASK_XTILE,
    XFEATURE_MASK_YMM,
)

_BND: Final = XFEATURE_MASK_BNDREGS | XFEATURE_MASK_BNDCSR


def xcr0_error(index: int, value: int, supported: int) -> str | None:
    """Return the rule that XCR ``index`` = ``value`` breaks for a guest that may use ``supported``; None if it is fine.

    Only ECX counts: the upper half of RCX is ignored by the instruction, so the caller masks ``index`` to 32 bits.
    """
    if index != 0:
        return f"there is no XCR{index}"
    if not value & XFEATURE_MASK_FP:
        return "x87 (bit 0) must be set"
    if value & XFEATURE_MASK_YMM and not value & XFEATURE_MASK_SSE:
        return "YMM needs SSE"
    if value & ~(supported | XFEATURE_MASK_FP):
        return f"bits {value & ~(supported | XFEATURE_MASK_FP):#x} are not supported for this guest"
    if value & _BND not in (0, _BND):
        return "BNDREGS and BNDCSR go together"
    avx512 = value & XFEATURE_MASK_AVX512
    if avx512 and (avx512 != XFEATURE_MASK_AVX512 or not value & XFEATURE_MASK_YMM):
        return "opmask, ZMM_Hi256 and Hi16_ZMM go together, with YMM"
    if value & XFEATURE_MASK_XTILE not in (0, XFEATURE_MASK_XTILE):
        return "XTILE_CFG and XTILE_DATA go together"
    return None


def moves_cpuid(old: int, new: int) -> bool:
    """Whether XCR0 going from ``old`` to ``new`` makes KVM compute leaf 0xD again: an extended component changed.

    Source: arch/x86/kvm/x86.c, __kvm_set_xcr(), XFEATURE_MASK_EXTEND.
    """
    return bool((old ^ new) & ~XFEATURE_MASK_FPSSE)
