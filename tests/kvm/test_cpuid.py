"""The CPUID of guests: what KVM supports, what a table makes of it, and what follows the registers.

Reference: arch/x86/kvm/cpuid.c.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from fpu_core.cpuid import ABSENT, builtin_profile_names
from fpu_core.errors import Errno
from fpu_core.rules import KERNEL_6_12, KERNEL_6_18, KernelRules
from fpu_core.xfeature import XFEATURE_MASK_XTILE, for_each_set_bit
from host_agent.kvm import intercept
from host_agent.kvm.cpuid import (
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
    KVM_MAX_CPUID_ENTRIES,
    X86_CR4_OSXSAVE,
    X86_CR4_PKE,
    CpuidEntry,
    CpuidTable,
    GuestCpuid,
    execute_cpuid,
    find_entry,
    xcr0_of,
    xss_of,
)
from host_agent.kvm.outcome import Done
from host_agent.kvm.set_cpuid import cpuid_refused, guest_cpuid, runtime_cpuid, set_cpuid2
from host_agent.kvm.supported_cpuid import cut_down, hide_features
from host_agent.kvm.vcpu import KvmVm, reset_vcpu
from host_agent.kvm.xcr0 import xcr0_error
from tests.core.world import Guest, World

AMX_BITS = 1 << 22 | 1 << 24 | 1 << 25


def world_of(profile: str = "sapphire-rapids", rules: KernelRules = KERNEL_6_18) -> tuple[World, Guest]:
    """A vCPU that has not run."""
    world = World.create(profile, rules=rules)
    guest = world.create_vcpu("a", 0)
    assert isinstance(guest, Guest)
    return world, guest


def supported(vm: KvmVm) -> CpuidTable:
    """KVM_GET_SUPPORTED_CPUID as the process gets it now."""
    return vm.supported_cpuid(vm.permitted_xcr0)


def entry_of(table: CpuidTable, function: int, index: int = 0) -> CpuidEntry:
    """An entry that has to be there."""
    found = find_entry(table, function, index)
    assert found is not None
    return found


@pytest.mark.parametrize("profile", builtin_profile_names())
@pytest.mark.parametrize("rules", [KERNEL_6_12, KERNEL_6_18], ids=lambda rules: str(rules.name))
def test_what_is_supported_is_consistent(profile: str, rules: KernelRules) -> None:
    """Of every processor: XCR0 is one a guest may set, and sub-leaves, sizes and flags fit together."""
    vm = World.create(profile, rules=rules).vms["a"]
    table = vm.supported_cpuid(vm.supported_xcr0)
    xcr0, xss = xcr0_of(table), xss_of(table)
    assert xcr0 == vm.supported_xcr0
    assert xcr0_error(0, xcr0, xcr0) is None
    assert xss == vm.caps.supported_xss
    there = {entry.index for entry in table if entry.function == 0xD}
    assert there == {0, 1, *for_each_set_bit((xcr0 | xss) & ~3)}
    main, xsave = entry_of(table, 0xD, 0), entry_of(table, 0xD, 1)
    ends = [entry.ebx + entry.eax for entry in table if entry.function == 0xD and entry.index > 1 and not entry.ecx & 1]
    assert main.ebx == main.ecx == max(ends)
    assert bool(xsave.ebx) == bool(xsave.eax & 0b1010)
    assert all(entry.edx == 0 for entry in table if entry.function == 0xD and entry.index > 1)


def test_permission_decides_what_leaf_0xd_shows() -> None:
    """Bug B22: without permission for tile data, XTILE_CFG is hidden too. Leaves 7, 0x1D and 0x1E do not change."""
    world = World.create()
    vm = world.vms["a"]
    before = supported(vm)
    world.request("a", guest=True)
    after = supported(vm)
    assert (xcr0_of(before), xcr0_of(after)) == (0x2E7, 0x602E7)
    assert find_entry(before, 0xD, 17) is None
    assert find_entry(before, 0xD, 18) is None
    assert entry_of(after, 0xD, 18).ecx == 0b110
    assert entry_of(before, 0xD, 0).ecx == 2696
    assert entry_of(after, 0xD, 0).ecx == 11008
    for leaf in (0x7, 0x1D, 0x1E):
        assert entry_of(before, leaf) == entry_of(after, leaf)
    assert entry_of(before, 0x7).edx & AMX_BITS == AMX_BITS


def test_a_host_without_amx() -> None:
    """Leaves 0x1D and 0x1E are zeros, and leaf 7 has none of its bits."""
    vm = World.create("ice-lake").vms["a"]
    table = supported(vm)
    assert entry_of(table, 0x7).edx & AMX_BITS == 0
    assert {entry.eax | entry.ebx | entry.ecx for entry in table if entry.function in (0x1D, 0x1E)} <= {0}


def test_the_size_follows_the_alignment_rule() -> None:
    """Bug B23: in the compacted format XTILE_CFG and XTILE_DATA begin at multiples of 64, behind CET too."""
    world = World.create()
    world.request("a", guest=True)
    table = supported(world.vms["a"])
    assert entry_of(table, 0xD, 1).ebx == 10752
    without_cet = World.create(rules=KERNEL_6_12)
    without_cet.request("a", guest=True)
    assert entry_of(supported(without_cet.vms["a"]), 0xD, 1).ebx == 10752
    assert entry_of(cut_down(table, world.config.table, xcr0=0x207), 0xD, 1).ebx == 880


@pytest.mark.parametrize(
    ("table", "lookup", "eax"),
    [
        pytest.param((CpuidEntry(function=7, index=1, flags=1, eax=5),), (7, 0), None, id="an index that counts"),
        pytest.param((CpuidEntry(function=7, index=1, eax=5),), (7, 0), 5, id="an index that does not"),
        pytest.param(
            (CpuidEntry(function=7, flags=1, eax=5), CpuidEntry(function=7, flags=1, eax=6)),
            (7, 0),
            5,
            id="of two the first",
        ),
        pytest.param(
            (CpuidEntry(function=7, eax=5), CpuidEntry(function=7, index=3, flags=1, eax=6)),
            (7, 3),
            5,
            id="one without an index hides those behind it",
        ),
    ],
)
def test_looking_up(table: CpuidTable, lookup: tuple[int, int], eax: int | None) -> None:
    """The first entry that answers is the answer; KVM takes duplicates without a word."""
    found = find_entry(table, *lookup)
    assert (found.eax if found is not None else None) == eax


def test_beyond_the_highest_leaf_intel_and_amd_differ() -> None:
    """Intel's processors answer for the highest basic leaf, AMD's with zeros; KVM goes by the vendor."""
    top = CpuidEntry(function=0xD, flags=1, eax=7)
    for vendor, answer in ((0x756E6547, 7), (0x68747541, 0)):
        last = {0x756E6547: (0x6C65746E, 0x49656E69), 0x68747541: (0x444D4163, 0x69746E65)}[vendor]
        table = (CpuidEntry(function=0, eax=0xD, ebx=vendor, ecx=last[0], edx=last[1]), top)
        assert execute_cpuid(table, 0x1D, 0).eax == answer
        assert execute_cpuid(table, 0x8000_0001, 0).eax == answer
        assert execute_cpuid(table, 0x5, 0) == ABSENT
    assert execute_cpuid((), 0x1D, 0) == ABSENT


_INTEL = CpuidEntry(function=0, eax=0xD, ebx=0x756E6547, ecx=0x6C65746E, edx=0x49656E69)
_HYPERVISORS = (
    CpuidEntry(function=0x4000_0000, eax=0x4000_0082, ebx=1),
    CpuidEntry(function=0x4000_0100, eax=0x4000_0101, ebx=2),
    CpuidEntry(function=0x8000_0000, eax=0x8000_0008, ebx=3),
    CpuidEntry(function=0xC000_0000, eax=0xC000_0002, ebx=4),
)


@pytest.mark.parametrize(
    ("leaf", "in_range"),
    [
        pytest.param(0xD, True, id="the highest basic leaf"),
        pytest.param(0xE, False, id="the one behind it"),
        pytest.param(0x3FFF_FFFF, False, id="the last before the hypervisor's"),
        pytest.param(0x4000_0001, True, id="the hypervisor's"),
        pytest.param(0x4000_0082, True, id="its last"),
        pytest.param(0x4000_0083, False, id="behind its last"),
        pytest.param(0x4000_0101, True, id="a second hypervisor interface, 256 leaves on"),
        pytest.param(0x4000_0102, False, id="behind that one's last"),
        pytest.param(0x4000_0200, False, id="a third there is not"),
        pytest.param(0x4FFF_FFFF, False, id="the end of the hypervisor's range"),
        pytest.param(0x5000_0000, False, id="behind that range: basic again"),
        pytest.param(0x8000_0008, True, id="the last extended leaf"),
        pytest.param(0x8000_0009, False, id="behind it"),
        pytest.param(0xC000_0001, True, id="Centaur's"),
        pytest.param(0xC000_0003, False, id="behind those"),
        pytest.param(0xD000_0000, False, id="and far behind"),
    ],
)
@pytest.mark.parametrize("subleaf", [0, 1])
def test_which_leaves_are_out_of_range(leaf: int, in_range: bool, subleaf: int) -> None:
    """A leaf without an entry is zeros within its range, else the highest basic leaf, with the sub-leaf asked for."""
    last = tuple(CpuidEntry(function=0xD, index=nr, flags=1, eax=100 + nr) for nr in (0, 1))
    table = (_INTEL, *_HYPERVISORS, *(last if leaf != 0xD else ()))
    assert execute_cpuid(table, leaf, subleaf).eax == (0 if in_range else 100 + subleaf)


def test_of_a_first_leaf_any_index_counts() -> None:
    """Leaf 0 and the first of each range have no sub-leaves: an entry counts whatever its index says."""
    indexed = replace(_INTEL, index=3, flags=KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
    extended = CpuidEntry(function=0x8000_0000, index=3, flags=KVM_CPUID_FLAG_SIGNIFCANT_INDEX, eax=0x8000_0008)
    table = (indexed, extended, CpuidEntry(function=0xD, eax=7))
    assert execute_cpuid(table, 0xE, 0).eax == 7
    assert execute_cpuid(table, 0x8000_0007, 0) == ABSENT


@pytest.mark.parametrize(
    ("table", "errno"),
    [
        pytest.param((), Errno.OK, id="an empty table"),
        pytest.param((CpuidEntry(function=5),) * KVM_MAX_CPUID_ENTRIES, Errno.OK, id="256 entries, all the same"),
        pytest.param((CpuidEntry(function=5),) * (KVM_MAX_CPUID_ENTRIES + 1), Errno.E2BIG, id="257 entries - E2BIG"),
        pytest.param((CpuidEntry(function=0x8000_0008, eax=48 << 8 | 46),), Errno.OK, id="48 bits of virtual address"),
        pytest.param((CpuidEntry(function=0x8000_0008, eax=57 << 8),), Errno.OK, id="57 bits"),
        pytest.param((CpuidEntry(function=0x8000_0008, eax=64 << 8),), Errno.EINVAL, id="64 bits - EINVAL"),
        pytest.param(
            (CpuidEntry(function=0x8000_0008, index=3, flags=1, eax=64 << 8),),
            Errno.EINVAL,
            id="in an entry of any index - EINVAL",
        ),
    ],
)
def test_set_cpuid2(table: CpuidTable, errno: Errno) -> None:
    """A table is taken whole, or refused and the old one is still there."""
    _, guest = world_of()
    before = guest.vcpu.cpuid
    cpuid = GuestCpuid(table, guest.vcpu.vm.caps)
    assert set_cpuid2(guest.vcpu, cpuid) is errno
    assert guest.vcpu.cpuid is (cpuid if errno is Errno.OK else before)


def test_after_the_first_run_only_the_same_table_is_taken() -> None:
    """What KVM owns in a table may differ: sizes that follow XCR0, OSXSAVE. Anything else is EINVAL."""
    world, guest = world_of()
    vcpu = guest.vcpu
    world.run(world.tasks["a/main"].fpu, 0)
    world.enter(guest, world.tasks["a/main"].fpu)
    world.xsetbv(guest, 0x7)
    table = vcpu.cpuid.table
    stale = tuple(replace(each, ebx=1) if (each.function, each.index) == (0xD, 0) else each for each in table)
    for same in (table, stale, runtime_cpuid(vcpu)):
        assert cpuid_refused(vcpu, GuestCpuid(same, vcpu.vm.caps)) is Errno.OK
    other = tuple(replace(each, ecx=each.ecx ^ 1) if each.function == 1 else each for each in table)
    for different in (other, table[1:], table[::-1], ()):
        assert cpuid_refused(vcpu, GuestCpuid(different, vcpu.vm.caps)) is Errno.EINVAL
    assert vcpu.cpuid.table == table


def test_what_a_table_gives_is_cut_to_what_kvm_supports() -> None:
    """guest_supported_xcr0 is CPUID.0xD.0 EDX:EAX and kvm_caps.supported_xcr0; XSS likewise; XFD needs both as well."""
    _, guest = world_of("ice-lake")
    everything = (
        CpuidEntry(function=0xD, index=0, flags=KVM_CPUID_FLAG_SIGNIFCANT_INDEX, eax=0xFFFF_FFFF, edx=0xFFFF_FFFF),
        CpuidEntry(function=0xD, index=1, flags=KVM_CPUID_FLAG_SIGNIFCANT_INDEX, eax=0x1F, ecx=0xFFFF_FFFF),
    )
    cpuid = GuestCpuid(everything, guest.vcpu.vm.caps)
    assert cpuid.supported_xcr0 == guest.vcpu.vm.supported_xcr0
    assert cpuid.supported_xss == guest.vcpu.vm.caps.supported_xss
    assert "XFD" in cpuid.declared
    assert "XFD" not in cpuid.features
    assert "XSAVES" not in cpuid.features, "VMX: XSAVES without XSAVE does not count"


def test_of_duplicates_only_the_first_follows_the_registers() -> None:
    """KVM keeps up to date what it finds first; what lies behind stays as it was given."""
    _, guest = world_of()
    table = guest.vcpu.cpuid.table
    guest.vcpu.cpuid = GuestCpuid(table * 2, guest.vcpu.vm.caps)
    assert runtime_cpuid(guest.vcpu) == (*runtime_cpuid(guest.vcpu, table), *table)
    assert runtime_cpuid(guest.vcpu, table) != table


@pytest.mark.parametrize("xcr0", [0x602E7, 0x2E7, 0x2FF, 0xE7, 0x207, 0x7, 0x3, 0x0])
def test_cut_down_is_a_table_for_its_own_mask(xcr0: int) -> None:
    """Cut down, a table supports the mask exactly, and cutting it down again changes nothing."""
    world, guest = world_of()
    once = cut_down(guest.vcpu.cpuid.table, world.config.table, xcr0=xcr0)
    assert cut_down(once, world.config.table, xcr0=xcr0) == once
    assert GuestCpuid(once, guest.vcpu.vm.caps).supported_xcr0 == xcr0 & 0x602E7
    size = max([576, *(each.ebx + each.eax for each in once if each.function == 0xD and each.index > 1 and each.ebx)])
    main = CpuidEntry(function=0xD, flags=KVM_CPUID_FLAG_SIGNIFCANT_INDEX, eax=xcr0 & 0x602E7, ebx=size, ecx=size)
    assert entry_of(once, 0xD, 0) == main
    assert {each.function for each in once} == {each.function for each in guest.vcpu.cpuid.table}


def test_cut_down_of_what_kvm_would_not_have_made() -> None:
    """The upper half of XCR0 goes like the lower; no compacted size where there was none; 0x1D is all zeros."""
    world, _ = world_of()
    table = (
        CpuidEntry(function=0xD, flags=1, eax=0x7, edx=1 << 30),
        CpuidEntry(function=0xD, index=1, flags=1, eax=0b101),
        CpuidEntry(function=0x1D, flags=1, eax=1, ebx=2, ecx=3, edx=4),
    )
    without = cut_down(table, world.config.table, xcr0=0x7)
    assert without == (
        CpuidEntry(function=0xD, flags=1, eax=0x7, ebx=832, ecx=832),
        table[1],
        CpuidEntry(function=0x1D, flags=1),
    )


def test_hiding_a_feature_hides_all_that_goes_with_it() -> None:
    """Tile data or its configuration: both go, with 0x1D, 0x1E and leaf 7's bits; nothing else does."""
    world, guest = world_of()
    table = guest.vcpu.cpuid.table
    for feature in for_each_set_bit(XFEATURE_MASK_XTILE):
        hidden = hide_features(table, world.config.table, 1 << feature)
        assert xcr0_of(hidden) == 0x2E7
        assert entry_of(hidden, 0x7).edx == entry_of(table, 0x7).edx & ~AMX_BITS
        assert entry_of(hidden, 0x7).ebx == entry_of(table, 0x7).ebx
        assert {each.eax | each.ebx | each.ecx for each in hidden if each.function in (0x1D, 0x1E)} == {0}
        assert {each.index for each in hidden if each.function == 0xD} == {0, 1, 2, 5, 6, 7, 9, 11, 12}


@pytest.mark.parametrize(
    ("hidden", "left"),
    [
        pytest.param(1 << 9, 0x600E7, id="PKRU alone: tiles stay"),
        pytest.param(1 << 9 | 1 << 18, 0xE7, id="PKRU and tile data: both, and XTILE_CFG"),
        pytest.param(1 << 17, 0x2E7, id="XTILE_CFG: tile data with it"),
        pytest.param(0, 0x602E7, id="nothing"),
    ],
)
def test_hiding_several_features(hidden: int, left: int) -> None:
    """What is named goes, and what cannot be without it; PKU goes from leaf 7 with PKRU."""
    world, guest = world_of()
    table = hide_features(guest.vcpu.cpuid.table, world.config.table, hidden)
    assert xcr0_of(table) == left
    assert bool(entry_of(table, 0x7).ecx & 1 << 3) == bool(left & 1 << 9)
    assert bool(entry_of(table, 0x7).edx & AMX_BITS) == bool(left & 1 << 18)


def test_a_guest_reads_its_own_table() -> None:
    """The CPUID instruction gives the vCPU's table, with the values that follow its registers."""
    _, guest = world_of()
    regs = guest_cpuid(guest.vcpu, 0xD, 0)
    assert (regs.eax, regs.ebx, regs.ecx) == (0x602E7, 576, 11008)
    assert guest_cpuid(guest.vcpu, 0x1).ecx >> 27 & 1, "CR4.OSXSAVE is taken to be set until a write of CR4 is reported"
    assert guest_cpuid(guest.vcpu, 0xD, 63) == ABSENT


@pytest.mark.parametrize("cr4", [0, X86_CR4_OSXSAVE, X86_CR4_PKE, X86_CR4_OSXSAVE | X86_CR4_PKE])
def test_what_follows_cr4(cr4: int) -> None:
    """OSXSAVE in leaf 1 and OSPKE in leaf 7, each with its own bit, and no other bit with either."""
    _, guest = world_of()
    vcpu = guest.vcpu
    before = vcpu.cpuid.table
    assert intercept.handle_write_cr4(vcpu, value=cr4) == Done()
    leaf1, leaf7 = guest_cpuid(vcpu, 0x1), guest_cpuid(vcpu, 0x7)
    assert leaf1.ecx == entry_of(before, 0x1).ecx & ~(1 << 27) | bool(cr4 & X86_CR4_OSXSAVE) << 27
    assert leaf7.ecx == entry_of(before, 0x7).ecx & ~(1 << 4) | bool(cr4 & X86_CR4_PKE) << 4
    assert guest_cpuid(vcpu, 0x7, 1).ecx == entry_of(before, 0x7, 1).ecx
    reset_vcpu(vcpu)
    assert vcpu.cr4 == 0


@pytest.mark.parametrize(("eax", "ebx"), [(0x1F, 840), (0b10, 840), (0b1000, 840), (0b10101, 5)])
def test_the_compacted_size_follows_where_there_is_one(eax: int, ebx: int) -> None:
    """CPUID.0xD.1 EBX follows XCR0 for a guest with XSAVEC or XSAVES; for another it stays what it was given as."""
    _, guest = world_of()
    vcpu = guest.vcpu
    table = tuple(
        replace(each, eax=eax, ebx=5) if (each.function, each.index) == (0xD, 1) else each for each in vcpu.cpuid.table
    )
    vcpu.xcr0 = 0x207
    assert entry_of(runtime_cpuid(vcpu, table), 0xD, 1).ebx == ebx
    assert entry_of(runtime_cpuid(vcpu, table), 0xD, 0).ebx == 2696
