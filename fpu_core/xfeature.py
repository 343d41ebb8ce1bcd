"""The xfeatures: numbers, names and masks, in the kernel's spelling.

An xfeature is one bit of XCR0 or IA32_XSS and, under the same number, one component of an XSAVE image.
Every mask in the project is an unsigned 64-bit ``int`` of such bits.

Sources: arch/x86/include/asm/fpu/types.h and xstate.h (names and masks), Intel SDM vol. 1 chapter 13 (numbers).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

XFEATURE_FP: Final = 0
XFEATURE_SSE: Final = 1
XFEATURE_YMM: Final = 2
XFEATURE_BNDREGS: Final = 3
XFEATURE_BNDCSR: Final = 4
XFEATURE_OPMASK: Final = 5
XFEATURE_ZMM_Hi256: Final = 6
XFEATURE_Hi16_ZMM: Final = 7
XFEATURE_PT: Final = 8
XFEATURE_PKRU: Final = 9
XFEATURE_PASID: Final = 10
XFEATURE_CET_USER: Final = 11
XFEATURE_CET_KERNEL: Final = 12
XFEATURE_LBR: Final = 15
XFEATURE_XTILE_CFG: Final = 17
XFEATURE_XTILE_DATA: Final = 18
XFEATURE_APX: Final = 19

XFEATURE_NAMES: Final[dict[int, str]] = {
    XFEATURE_FP: "FP",
    XFEATURE_SSE: "SSE",
    XFEATURE_YMM: "YMM",
    XFEATURE_BNDREGS: "BNDREGS",
    XFEATURE_BNDCSR: "BNDCSR",
    XFEATURE_OPMASK: "OPMASK",
    XFEATURE_ZMM_Hi256: "ZMM_Hi256",
    XFEATURE_Hi16_ZMM: "Hi16_ZMM",
    XFEATURE_PT: "PT",
    XFEATURE_PKRU: "PKRU",
    XFEATURE_PASID: "PASID",
    XFEATURE_CET_USER: "CET_USER",
    XFEATURE_CET_KERNEL: "CET_KERNEL",
    XFEATURE_LBR: "LBR",
    XFEATURE_XTILE_CFG: "XTILE_CFG",
    XFEATURE_XTILE_DATA: "XTILE_DATA",
    XFEATURE_APX: "APX",
}


def feature_mask(*features: int) -> int:
    """Return the mask that has exactly the bits of ``features`` (component numbers) set."""
    mask = 0
    for feature in features:
        mask |= 1 << feature
    return mask


def for_each_set_bit(mask: int) -> Iterator[int]:
    """Yield the component numbers of ``mask`` in ascending order."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def format_mask(mask: int) -> str:
    """Return ``mask`` as a reader likes it: ``XTILE_CFG|XTILE_DATA``, ``0`` for none, ``bit40`` where nameless."""
    return "|".join(XFEATURE_NAMES.get(nr, f"bit{nr}") for nr in for_each_set_bit(mask)) or "0"


XFEATURE_MASK_FP: Final = 1 << XFEATURE_FP
XFEATURE_MASK_SSE: Final = 1 << XFEATURE_SSE
XFEATURE_MASK_YMM: Final = 1 << XFEATURE_YMM
XFEATURE_MASK_BNDREGS: Final = 1 << XFEATURE_BNDREGS
XFEATURE_MASK_BNDCSR: Final = 1 << XFEATURE_BNDCSR
XFEATURE_MASK_PKRU: Final = 1 << XFEATURE_PKRU
XFEATURE_MASK_CET_USER: Final = 1 << XFEATURE_CET_USER
XFEATURE_MASK_PASID: Final = 1 << XFEATURE_PASID
XFEATURE_MASK_CET_KERNEL: Final = 1 << XFEATURE_CET_KERNEL
XFEATURE_MASK_LBR: Final = 1 << XFEATURE_LBR
XFEATURE_MASK_XTILE_CFG: Final = 1 << XFEATURE_XTILE_CFG
XFEATURE_MASK_XTILE_DATA: Final = 1 << XFEATURE_XTILE_DATA
XFEATURE_MASK_APX: Final = 1 << XFEATURE_APX

XFEATURE_MASK_FPSSE: Final = feature_mask(XFEATURE_FP, XFEATURE_SSE)
XFEATURE_MASK_ZMM: Final = feature_mask(XFEATURE_ZMM_Hi256, XFEATURE_Hi16_ZMM)
XFEATURE_MASK_AVX512: Final = feature_mask(XFEATURE_OPMASK, XFEATURE_ZMM_Hi256, XFEATURE_Hi16_ZMM)
XFEATURE_MASK_XTILE: Final = feature_mask(XFEATURE_XTILE_CFG, XFEATURE_XTILE_DATA)
XFEATURE_MASK_CET: Final = feature_mask(XFEATURE_CET_USER, XFEATURE_CET_KERNEL)

#: User features the kernel supports; a kernel_rules profile may know fewer (rules.py).
XFEATURE_MASK_USER_SUPPORTED: Final = (
    XFEATURE_MASK_FPSSE
    | XFEATURE_MASK_YMM
    | XFEATURE_MASK_BNDREGS
    | XFEATURE_MASK_BNDCSR
    | XFEATURE_MASK_AVX512
    | XFEATURE_MASK_PKRU
    | XFEATURE_MASK_XTILE
    | XFEATURE_MASK_APX
)
#: What needs a permission and a larger container.
XFEATURE_MASK_USER_DYNAMIC: Final = XFEATURE_MASK_XTILE_DATA
#: PKRU is switched eagerly, beside the FPU code, so no restore of an image ever touches it.
XFEATURE_MASK_USER_RESTORE: Final = XFEATURE_MASK_USER_SUPPORTED & ~XFEATURE_MASK_PKRU
XFEATURE_MASK_GUEST_SUPERVISOR: Final = XFEATURE_MASK_CET_KERNEL
XFEATURE_MASK_SUPERVISOR_SUPPORTED: Final = feature_mask(XFEATURE_PASID, XFEATURE_CET_USER, XFEATURE_CET_KERNEL)
#: Saved and restored by their owners (perf for LBR), never with an fpstate.
XFEATURE_MASK_INDEPENDENT: Final = XFEATURE_MASK_LBR
#: Every supervisor bit there may be in XSTATE_BV, supported or not: what a buffer from userspace cannot change.
XFEATURE_MASK_SUPERVISOR_ALL: Final = (
    XFEATURE_MASK_SUPERVISOR_SUPPORTED | XFEATURE_MASK_INDEPENDENT | feature_mask(XFEATURE_PT)
)
#: The fixed restore mask: everything an fpstate may hold except PKRU.
XFEATURE_MASK_FPSTATE: Final = XFEATURE_MASK_USER_RESTORE | XFEATURE_MASK_SUPERVISOR_SUPPORTED

#: Bit 63 of XCOMP_BV: the image is compacted. SDM vol. 1, 13.4.2.
XCOMP_BV_COMPACTED_FORMAT: Final = 1 << 63

MSR_IA32_XFD: Final = 0x1C4
MSR_IA32_XFD_ERR: Final = 0x1C5
MSR_IA32_XSS: Final = 0xDA0
