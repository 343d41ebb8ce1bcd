"""KVM_GET_SUPPORTED_CPUID, and tables cut down from it.

The table has the leaves that FPU state hangs on: 0, 1, 7, 0xD, 0x1D, 0x1E and 0x80000001. In them the bits that need a
component, an XSAVE instruction or XFD are KVM's; the others are the processor's.

Of all this only leaf 0xD follows from the process's permission: KVM shows AMX in leaves 7, 0x1D and 0x1E wherever the
host has it, permitted or not, and a VMM that never asks has to clear them itself (``cut_down``).

Source: arch/x86/kvm/cpuid.c, __do_cpuid_func() and cpuid_entry_override().
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from fpu_core.cpuid import CpuidProfile
from fpu_core.layout import ComponentTable
from fpu_core.xfeature import XFEATURE_MASK_XTILE, for_each_set_bit
from host_agent.kvm.caps import CAP_XFEATURES, KvmCaps, has_xfeatures
from host_agent.kvm.cpuid import (
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
    CpuidEntry,
    CpuidTable,
    xcr0_of,
    xss_of,
    xstate_required_size,
)


def _bits(*numbers: int) -> int:
    return sum(1 << nr for nr in numbers)


#: Capability -> (leaf, sub-leaf, register) -> the bits that are there only with it. Source: SDM vol. 2, CPUID.
_CAP_BITS: Final[dict[str, dict[tuple[int, int, str], int]]] = {
    "XSAVE": {(0x1, 0, "ecx"): _bits(26)},
    "AVX": {  # with FMA, F16C, AVX2, VAES, VPCLMULQDQ, AVX-VNNI, AVX-IFMA and so on; AMD's XOP and FMA4
        (0x1, 0, "ecx"): _bits(12, 28, 29),
        (0x7, 0, "ebx"): _bits(5),
        (0x7, 0, "ecx"): _bits(9, 10),
        (0x7, 1, "eax"): _bits(4, 23),
        (0x7, 1, "edx"): _bits(4, 5, 10),
        (0x8000_0001, 0, "ecx"): _bits(11, 16),
    },
    "AVX512F": {
        (0x7, 0, "ebx"): _bits(16, 17, 21, 26, 27, 28, 30, 31),
        (0x7, 0, "ecx"): _bits(1, 6, 11, 12, 14),
        (0x7, 0, "edx"): _bits(2, 3, 8, 23),
        (0x7, 1, "eax"): _bits(5),
        (0x7, 1, "edx"): _bits(19),
    },
    "MPX": {(0x7, 0, "ebx"): _bits(14)},
    "PKU": {(0x7, 0, "ecx"): _bits(3)},
    "SHSTK": {(0x7, 0, "ecx"): _bits(7), (0x7, 0, "edx"): _bits(20)},
    "AMX_TILE": {  # BF16, TILE, INT8; FP16; COMPLEX
        (0x7, 0, "edx"): _bits(22, 24, 25),
        (0x7, 1, "eax"): _bits(21),
        (0x7, 1, "edx"): _bits(8),
    },
    "XSAVEOPT": {(0xD, 1, "eax"): _bits(0)},
    "XSAVEC": {(0xD, 1, "eax"): _bits(1)},
    "XGETBV1": {(0xD, 1, "eax"): _bits(2)},
    "XSAVES": {(0xD, 1, "eax"): _bits(3)},
    "XFD": {(0xD, 1, "eax"): _bits(4)},
}
#: What no guest is shown: OSXSAVE and OSPKE, which follow its CR4; PT, ENQCMD, LBR and APX, which KVM gives no guest.
_NEVER: Final[dict[tuple[int, int, str], int]] = {
    (0x1, 0, "ecx"): _bits(27),
    (0x7, 0, "ebx"): _bits(25),
    (0x7, 0, "ecx"): _bits(4, 29),
    (0x7, 0, "edx"): _bits(19),
    (0x7, 1, "edx"): _bits(21),
}
#: (leaf, sub-leaf) -> register -> the bits to clear.
_Gone = dict[tuple[int, int], dict[str, int]]
#: The highest basic leaf KVM knows. Source: cpuid.c, __do_cpuid_func(), function 0.
_MAX_BASIC_LEAF: Final = 0x24
_MAX_SUBLEAF_7: Final = 2


def supported_cpuid(profile: CpuidProfile, components: ComponentTable, caps: KvmCaps, *, xcr0: int) -> CpuidTable:
    """Return KVM_GET_SUPPORTED_CPUID on a host, for a process that may use ``xcr0`` in its guests."""
    top = profile.regs(0x0).eax
    known = [leaf for leaf in (0x0, 0x1, 0x7, 0x8000_0001) if (leaf, 0) in profile.leaves]
    gone = _gone_bits(_CAP_BITS.keys() - caps.features)
    basic = [entry for leaf in known for entry in _plain_leaf(profile, leaf, gone)]
    if top >= 0xD or (0xD, 0) in profile.leaves:
        basic += _leaf_0xd(profile, components, caps, xcr0)
    basic += [entry for leaf in (0x1D, 0x1E) if top >= leaf for entry in _amx_leaf(profile, leaf, caps)]
    return tuple(sorted(basic, key=lambda entry: entry.function))


def _plain_leaf(profile: CpuidProfile, leaf: int, gone: _Gone) -> Iterator[CpuidEntry]:
    """Leaves 0, 1, 7 (with its sub-leaves) and 0x80000001: the processor's bits, without those KVM has not got."""
    top_subleaf = min(profile.regs(leaf).eax, _MAX_SUBLEAF_7) if leaf == 0x7 else 0
    for index in range(top_subleaf + 1):
        entry = _drop_bits(_entry(profile, leaf, index, indexed=leaf == 0x7), gone)
        if leaf == 0x0:
            entry = replace(entry, eax=min(entry.eax, _MAX_BASIC_LEAF))
        elif (leaf, index) == (0x7, 0):
            entry = replace(entry, eax=top_subleaf)
        yield entry


def _leaf_0xd(profile: CpuidProfile, components: ComponentTable, caps: KvmCaps, xcr0: int) -> Iterator[CpuidEntry]:
    size = xstate_required_size(components, xcr0, compacted=False)
    main = _entry(profile, 0xD, 0)
    yield replace(main, eax=main.eax & xcr0, ebx=size, ecx=size, edx=main.edx & xcr0 >> 32)
    if not xcr0:
        return
    features = sum(_CAP_BITS[cap][0xD, 1, "eax"] for cap in caps.features if (0xD, 1, "eax") in _CAP_BITS[cap])
    xss = profile.xss_mask & caps.supported_xss
    compacts = caps.features & {"XSAVEC", "XSAVES"}
    compacted = xstate_required_size(components, xcr0 | xss, compacted=True) if compacts else 0
    xsave = _entry(profile, 0xD, 1)
    yield replace(xsave, eax=features, ebx=compacted, ecx=xss & 0xFFFF_FFFF, edx=xss >> 32)
    for nr in for_each_set_bit((xcr0 | xss) & ~3):
        component = _entry(profile, 0xD, nr)
        ecx = component.ecx if "XFD" in caps.features else component.ecx & ~4
        yield replace(component, ecx=ecx, edx=0)


def _amx_leaf(profile: CpuidProfile, leaf: int, caps: KvmCaps) -> Iterator[CpuidEntry]:
    """0x1D with its palettes, or 0x1E; all zeros where the host has no AMX."""
    if "AMX_TILE" not in caps.features:
        yield CpuidEntry(function=leaf, flags=KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
        return
    main = _entry(profile, leaf, 0)
    yield main
    if leaf == 0x1D:
        yield from (_entry(profile, leaf, palette) for palette in range(1, main.eax + 1))


def _entry(profile: CpuidProfile, leaf: int, index: int, *, indexed: bool = True) -> CpuidEntry:
    regs = profile.regs(leaf, index)
    flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX if indexed else 0
    return CpuidEntry(function=leaf, index=index, flags=flags, eax=regs.eax, ebx=regs.ebx, ecx=regs.ecx, edx=regs.edx)


def _gone_bits(lost: Iterable[str]) -> _Gone:
    """The bits that go with the capabilities ``lost``, and those that no guest is shown."""
    gone: _Gone = {}
    for bits in (_NEVER, *(_CAP_BITS[cap] for cap in lost)):
        for (leaf, index, register), mask in bits.items():
            of_entry = gone.setdefault((leaf, index), {})
            of_entry[register] = of_entry.get(register, 0) | mask
    return gone


def _drop_bits(entry: CpuidEntry, gone: _Gone) -> CpuidEntry:
    found = gone.get((entry.function, entry.index), {})
    return replace(entry, **{register: getattr(entry, register) & ~mask for register, mask in found.items()})


def cut_down(table: CpuidTable, components: ComponentTable, *, xcr0: int) -> CpuidTable:
    """Return ``table`` for a guest that is to see no more of XCR0 than ``xcr0``, consistent in itself.

    What goes with a component goes with it: its sub-leaf, the sizes, the feature bits of leaves 1 and 7, and with tile
    data 0x1D and 0x1E.
    """
    xcr0 &= xcr0_of(table)
    xss = xss_of(table)
    lost = [cap for cap in CAP_XFEATURES if not has_xfeatures(cap, xcr0 | xss)]
    gone = _gone_bits(lost)
    standard = xstate_required_size(components, xcr0, compacted=False)
    compacted = xstate_required_size(components, xcr0 | xss, compacted=True)
    kept = []
    for entry in table:
        match entry.function, entry.index:
            case 0xD, 0:
                changed = replace(entry, eax=xcr0 & 0xFFFF_FFFF, ebx=standard, ecx=standard, edx=xcr0 >> 32)
            case 0xD, 1:
                changed = replace(entry, ebx=compacted if entry.ebx else 0)
            case 0xD, nr if not (xcr0 | xss) >> nr & 1:
                continue
            case ((0x1D | 0x1E), index) if "AMX_TILE" in lost:
                if index:
                    continue
                changed = replace(entry, eax=0, ebx=0, ecx=0, edx=0)
            case _:
                changed = _drop_bits(entry, gone)
        kept.append(changed)
    return tuple(kept)


def hide_features(table: CpuidTable, components: ComponentTable, xfeatures: int) -> CpuidTable:
    """Return ``table`` without ``xfeatures``; XTILE_CFG and XTILE_DATA go together."""
    if xfeatures & XFEATURE_MASK_XTILE:
        xfeatures |= XFEATURE_MASK_XTILE
    return cut_down(table, components, xcr0=xcr0_of(table) & ~xfeatures)
