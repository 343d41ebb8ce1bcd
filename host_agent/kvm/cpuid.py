"""The CPUID of a guest: a table of entries, what follows from it, and what KVM keeps up to date in it.

A table is immutable and shared: by the VM's vCPUs, and with whoever asks. The few values that follow the vCPU's state
(CPUID.0xD EBX from XCR0 and XSS, OSXSAVE and OSPKE from CR4) are put in when it is looked at. KVM writes them down when
such a register changes; what a reader sees is the same.

Source: arch/x86/kvm/cpuid.c, cpuid_entry2_find(), kvm_update_cpuid_runtime(), cpuid_get_supported_xcr0(),
kvm_vcpu_after_set_cpuid(), kvm_cpuid().
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from fpu_core.cpuid import ABSENT, CpuidRegs
from fpu_core.layout import XSAVE_EXTENDED_OFFSET, ComponentTable
from fpu_core.xfeature import for_each_set_bit
from host_agent.kvm.caps import KvmCaps

#: More entries are E2BIG. Source: arch/x86/include/asm/kvm_host.h.
KVM_MAX_CPUID_ENTRIES: Final = 256
#: The entry is of one index; without it, of any. The kernel's spelling. Source: arch/x86/include/uapi/asm/kvm.h.
KVM_CPUID_FLAG_SIGNIFCANT_INDEX: Final = 1

#: CR4 bits that CPUID shows again. Source: SDM vol. 3, 2.5.
X86_CR4_OSXSAVE: Final = 1 << 18
X86_CR4_PKE: Final = 1 << 22

_OSXSAVE: Final = 1 << 27
_OSPKE: Final = 1 << 4
_XSAVEC_XSAVES: Final = 1 << 1 | 1 << 3
#: Where the capabilities that something asks a guest's CPUID for are.
_GUEST_BITS: Final[dict[str, tuple[int, int, str, int]]] = {
    "XSAVE": (0x1, 0, "ecx", 26),
    "PKU": (0x7, 0, "ecx", 3),
    "XSAVEC": (0xD, 1, "eax", 1),
    "XGETBV1": (0xD, 1, "eax", 2),
    "XSAVES": (0xD, 1, "eax", 3),
    "XFD": (0xD, 1, "eax", 4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuidEntry:
    """struct kvm_cpuid_entry2: the registers of one leaf and sub-leaf, unsigned 32-bit values."""

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


CpuidTable = tuple[CpuidEntry, ...]


def find_entry(table: CpuidTable, function: int, index: int | None = 0) -> CpuidEntry | None:
    """Return the first entry that answers for (function, index), None as ``index`` for any.

    KVM takes duplicates, and uses the first. Where the index does not count by the architecture, KVM asks for any.
    """
    at = _position(table, function, index)
    return table[at] if at is not None else None


def _position(table: CpuidTable, function: int, index: int | None) -> int | None:
    for at, entry in enumerate(table):
        if entry.function == function and (
            index is None or entry.index == index or not entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        ):
            return at
    return None


def xcr0_of(table: CpuidTable) -> int:
    """CPUID.0xD.0 EDX:EAX; 0 without the leaf."""
    entry = find_entry(table, 0xD, 0)
    return entry.edx << 32 | entry.eax if entry is not None else 0


def xss_of(table: CpuidTable) -> int:
    """CPUID.0xD.1 EDX:ECX; 0 without the leaf."""
    entry = find_entry(table, 0xD, 1)
    return entry.edx << 32 | entry.ecx if entry is not None else 0


class GuestCpuid:
    """A table and what KVM concludes from it, once: what the guest may enable, and which capabilities it has.

    ``features``: by the guest's table and by KVM both. ``declared``: by the table alone.
    """

    __slots__ = ("declared", "features", "fingerprint", "supported_xcr0", "supported_xss", "table")

    def __init__(self, table: CpuidTable, caps: KvmCaps) -> None:
        self.table = table
        self.supported_xcr0 = xcr0_of(table) & caps.supported_xcr0
        self.supported_xss = xss_of(table) & caps.supported_xss
        self.declared = frozenset(name for name, where in _GUEST_BITS.items() if _bit(table, *where))
        # VMX: XSAVES without XSAVE does not count. Source: vmx.c, vmx_vcpu_after_set_cpuid().
        without_xsave = frozenset() if "XSAVE" in self.declared else frozenset({"XSAVES"})
        self.features = self.declared & caps.features - without_xsave
        #: The same for equal tables, whoever made them.
        self.fingerprint = hashlib.sha256(repr(table).encode()).hexdigest()


def _bit(table: CpuidTable, function: int, index: int, register: str, bit: int) -> int:
    entry = find_entry(table, function, index)
    return int(getattr(entry, register)) >> bit & 1 if entry is not None else 0


def xstate_required_size(components: ComponentTable, mask: int, *, compacted: bool) -> int:
    """Return the bytes an XSAVE image of ``mask`` takes, as KVM's CPUID says it: whatever the host's own format is.

    In the compacted format a component begins at a multiple of 64 where its ECX[1] says so (bug B23).
    """
    offsets = components.offsets(mask, compacted=compacted)
    ends = [offsets[nr] + components.size_bytes(nr) for nr in for_each_set_bit(mask & ~3) if nr in offsets]
    return max([XSAVE_EXTENDED_OFFSET, *ends])


def with_runtime(table: CpuidTable, components: ComponentTable, *, xcr0: int, xss: int, cr4: int) -> CpuidTable:
    """Return ``table`` as it is for a vCPU with these registers: kvm_update_cpuid_runtime()."""
    changed = list(table)
    for function, index in ((0x1, None), (0x7, 0), (0xD, 0), (0xD, 1)):
        at = _position(table, function, index)
        if at is not None:
            changed[at] = _follow_registers(table[at], index, components, xcr0=xcr0, xss=xss, cr4=cr4)
    return tuple(changed)


def _follow_registers(
    entry: CpuidEntry, index: int | None, components: ComponentTable, *, xcr0: int, xss: int, cr4: int
) -> CpuidEntry:
    match entry.function, index:
        case 0x1, _:
            return replace(entry, ecx=_follow(entry.ecx, _OSXSAVE, cr4 & X86_CR4_OSXSAVE))
        case 0x7, _:
            return replace(entry, ecx=_follow(entry.ecx, _OSPKE, cr4 & X86_CR4_PKE))
        case _, 0:
            return replace(entry, ebx=xstate_required_size(components, xcr0, compacted=False))
        case _ if entry.eax & _XSAVEC_XSAVES:
            return replace(entry, ebx=xstate_required_size(components, xcr0 | xss, compacted=True))
        case _:
            return entry


def _follow(value: int, bit: int, source: int) -> int:
    return value | bit if source else value & ~bit


def execute_cpuid(table: CpuidTable, leaf: int, subleaf: int) -> CpuidRegs:
    """What the guest's CPUID instruction gives; zeros where there is no entry.

    Beyond the highest leaf Intel's processors answer for the highest basic leaf, AMD's with zeros.
    Source: cpuid.c, get_out_of_range_cpuid_entry().
    """
    entry = find_entry(table, leaf, subleaf)
    if entry is None:
        top = _out_of_range_leaf(table, leaf)
        entry = find_entry(table, top, subleaf) if top is not None else None
    return CpuidRegs(entry.eax, entry.ebx, entry.ecx, entry.edx) if entry is not None else ABSENT


_AMD_VENDORS: Final = ((0x68747541, 0x69746E65, 0x444D4163), (0x6F677948, 0x6E65476E, 0x656E6975))  # AMD, Hygon


def _out_of_range_leaf(table: CpuidTable, leaf: int) -> int | None:
    """The leaf that answers instead, None where ``leaf`` is in range or the vendor answers with zeros."""
    basic = find_entry(table, 0x0, None)
    if basic is None or (basic.ebx, basic.edx, basic.ecx) in _AMD_VENDORS:
        return None
    first = find_entry(table, _class_of(leaf), None)
    return None if first is not None and leaf <= first.eax else basic.eax


def _class_of(leaf: int) -> int:
    """The leaf that says how far the range of ``leaf`` goes: a hypervisor has one every 256 leaves, Centaur its own."""
    if 0x4000_0000 <= leaf <= 0x4FFF_FFFF:
        return leaf & 0xFFFF_FF00
    return 0xC000_0000 if leaf >= 0xC000_0000 else leaf & 0x8000_0000
