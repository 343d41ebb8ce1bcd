"""The guest's CPUID: what KVM supports, with everything about tiles and XFD taken out.

On a processor that has AMX the tile instructions would simply run, and nothing would reach the model. With the features
hidden, KVM refuses the XCR0 bits and the instructions raise #UD, as on a processor without them.
"""

from __future__ import annotations

from guest_agent.kvm.api import KVM_CPUID_FLAG_SIGNIFCANT_INDEX
from guest_agent.kvm.structs import KvmCpuid, KvmCpuidEntry

XFEATURE_MASK_XTILE = 1 << 17 | 1 << 18

#: Bits to clear: (leaf, subleaf) -> register -> mask.
#: Source: SDM vol. 2, CPUID. 7.0 EDX 22 AMX-BF16, 24 AMX-TILE, 25 AMX-INT8; 7.1 EAX 21 AMX-FP16, EDX 8 AMX-COMPLEX;
#: 0xd.0 EAX XCR0 bits; 0xd.1 EAX 4 XFD.
_CLEARED = {
    (0x7, 0): {"edx": 1 << 22 | 1 << 24 | 1 << 25},
    (0x7, 1): {"eax": 1 << 21, "edx": 1 << 8},
    (0xD, 0): {"eax": XFEATURE_MASK_XTILE},
    (0xD, 1): {"eax": 1 << 4},
}
_ZEROED_SUBLEAVES = {(0xD, 17), (0xD, 18)}
_ZEROED_LEAVES = {0x1D, 0x1E}
_XSAVE_HEADER_END = 576


def hide_tiles(cpuid: KvmCpuid) -> None:
    """Take tiles and XFD out of `cpuid` in place; the other entries stay as they are."""
    for entry in cpuid.entries[: cpuid.nent]:
        _hide_in(entry)
    _shrink_xsave_area(cpuid)


def supported_xcr0(cpuid: KvmCpuid) -> int:
    """Return the XCR0 bits that `cpuid` offers (leaf 0xd.0 EDX:EAX); 1 (x87 alone) without that leaf."""
    for entry in cpuid.entries[: cpuid.nent]:
        if (entry.function, entry.index) == (0xD, 0):
            return entry.edx << 32 | entry.eax
    return 1


def _hide_in(entry: KvmCpuidEntry) -> None:
    subleaf = entry.index if entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX else 0
    if entry.function in _ZEROED_LEAVES or (entry.function, subleaf) in _ZEROED_SUBLEAVES:
        entry.eax = entry.ebx = entry.ecx = entry.edx = 0
    for register, mask in _CLEARED.get((entry.function, subleaf), {}).items():
        setattr(entry, register, getattr(entry, register) & ~mask)


def _shrink_xsave_area(cpuid: KvmCpuid) -> None:
    """Set leaf 0xd.0 ECX, the size for all supported user features, to where the last remaining one ends.

    EBX, the size for the current XCR0, is kept by KVM itself.
    """
    leaf = [entry for entry in cpuid.entries[: cpuid.nent] if entry.function == 0xD]
    ends = [entry.ebx + entry.eax for entry in leaf if entry.index >= 2 and not entry.ecx & 1]
    for entry in leaf:
        if entry.index == 0:
            entry.ecx = max([_XSAVE_HEADER_END, *ends])
