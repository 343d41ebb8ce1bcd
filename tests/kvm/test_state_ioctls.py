"""KVM_GET/SET_XSAVE, XCRS and MSRS: errno, partial counts, growth, and nothing changed by what is refused.

Reference: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl(), kvm_vcpu_ioctl_x86_set_xsave(), msr_io().
"""

from __future__ import annotations

import pytest

from fpu_core.config import boot
from fpu_core.errors import Errno
from fpu_core.invariants import check_core
from fpu_core.xfeature import MSR_IA32_XFD, MSR_IA32_XFD_ERR, MSR_IA32_XSS, XFEATURE_PKRU
from host_agent.kvm.msrs_ioctl import MsrEntry, MsrsSet, get_msrs, set_msrs
from host_agent.kvm.restore import StateSet
from host_agent.kvm.xcrs_ioctl import Xcr, get_xcrs, set_xcrs
from host_agent.kvm.xsave_ioctl import get_xsave, get_xsave2, set_xsave
from tests.core.rig import without_compaction
from tests.core.samples import random_bytes
from tests.kvm.restored import AMX, TILE_DATA, buffer, everything, outside
from tests.kvm.test_xfd import entered

XFD, XFD_ERR, XSS = MSR_IA32_XFD, MSR_IA32_XFD_ERR, MSR_IA32_XSS


def xstate_bv(buf: bytes | Errno) -> int:
    """XSTATE_BV of an exported buffer."""
    assert isinstance(buf, bytes)
    return int.from_bytes(buf[512:520], "little")


# -- XSAVE -------------------------------------------------------------------------------------------------------------


def test_get_xsave_fails_once_the_state_is_larger() -> None:
    """4,096 bytes by both calls; after growth EINVAL from the one and 11,008 bytes from the other, never a cut."""
    _, vcpu = outside()
    assert get_xsave(vcpu) == get_xsave2(vcpu) == get_xsave2(vcpu)
    assert isinstance(set_xsave(vcpu, buffer(TILE_DATA, fill=b"tile")), StateSet)
    assert get_xsave(vcpu) is Errno.EINVAL
    grown = get_xsave2(vcpu)
    assert isinstance(grown, bytes)
    assert (len(grown), grown[2816:2820]) == (11008, b"tile")


@pytest.mark.parametrize(
    ("buf", "errno"),
    [
        pytest.param(buffer(3, size=4096), Errno.OK, id="x87 and SSE"),
        pytest.param(buffer(3, size=11008), Errno.OK, id="a longer buffer: the rest is not read"),
        pytest.param(buffer(3, size=4095), Errno.EFAULT, id="a byte short of 4,096"),
        pytest.param(b"", Errno.EFAULT, id="empty"),
        pytest.param(buffer(TILE_DATA, size=4096), Errno.EFAULT, id="tile data that is cut off"),
        pytest.param(buffer(TILE_DATA, size=11007), Errno.EFAULT, id="tile data a byte short"),
        pytest.param(buffer(TILE_DATA), Errno.OK, id="tile data"),
        pytest.param(buffer(1 << 11), Errno.EINVAL, id="what is no user feature"),
        pytest.param(buffer(TILE_DATA | 1 << 19), Errno.EINVAL, id="tile data beside what the host lacks"),
        pytest.param(buffer(TILE_DATA | 3, mxcsr=1 << 31), Errno.EINVAL, id="tile data beside a bad MXCSR"),
    ],
)
def test_set_xsave(buf: bytes, errno: Errno) -> None:
    """One buffer and its errno. What is refused leaves no grown container behind."""
    _, vcpu = outside()
    before = everything(vcpu)
    result = set_xsave(vcpu, buf)
    assert (result is errno) if errno is not Errno.OK else isinstance(result, StateSet)
    if errno is not Errno.OK:
        assert everything(vcpu) == before


@pytest.mark.parametrize(
    ("cpuid", "permitted", "memory", "errno"),
    [
        pytest.param(AMX, True, True, Errno.OK, id="permission and memory"),
        pytest.param(AMX, True, False, Errno.ENOMEM, id="no memory"),
        pytest.param(AMX, False, True, Errno.EPERM, id="no permission"),
        pytest.param(AMX, False, False, Errno.EPERM, id="neither: permission comes first"),
        pytest.param(0x2E7, True, True, Errno.EINVAL, id="a guest whose CPUID has no tiles"),
        pytest.param(0, True, True, Errno.EINVAL, id="a guest whose CPUID has nothing"),
    ],
)
def test_tile_data_grows_before_it_goes_in(cpuid: int, permitted: bool, memory: bool, errno: Errno) -> None:
    """At once and in the call; a failure changes nothing and opens no exit."""
    world, vcpu = outside(cpuid=cpuid, permitted=permitted)
    world.fail_next = not memory
    before = everything(vcpu)
    tiles = random_bytes(9, 8192)
    result = set_xsave(vcpu, buffer(AMX & ~0x200, fill=tiles))
    if errno is Errno.OK:
        assert isinstance(result, StateSet)
        assert result.reallocated is not None
        exported = get_xsave2(vcpu)
        assert isinstance(exported, bytes)
        assert (xstate_bv(exported), exported[2816:11008]) == (AMX & ~0x200, tiles)
    else:
        assert result is errno
        assert everything(vcpu) == before
    check_core(world.view())


def test_what_xfd_disables_is_dropped() -> None:
    """A buffer with tile data for a guest whose XFD disables it goes in without the tile data (bug B1)."""
    world, vcpu = outside()
    set_xsave(vcpu, buffer(TILE_DATA, fill=b"tile"))
    assert set_msrs(vcpu, [MsrEntry(XFD, TILE_DATA)]) == MsrsSet(1)
    assert vcpu.fpstate.xstate_bv == 0
    assert set_xsave(vcpu, buffer(TILE_DATA | 3, fill=b"tile")) == StateSet()
    assert vcpu.fpstate.xstate_bv == 3
    check_core(world.view())


def test_pkru_is_kept_where_the_buffer_has_none() -> None:
    """KVM's odd rule: absent PKRU is left alone, where every other absent component becomes init."""
    _, vcpu = outside()
    buf = bytearray(buffer(0x203))
    buf[2688:2692] = (0x5555).to_bytes(4, "little")
    set_xsave(vcpu, bytes(buf))
    assert vcpu.pkru == 0x5555
    set_xsave(vcpu, buffer(3))
    assert vcpu.pkru == 0x5555


@pytest.mark.parametrize(("threads_own", "leaves"), [(0x55555554, True), (0, False)])
def test_a_guests_pkru_leaves_while_the_threads_own_is_not_zero(threads_own: int, leaves: bool) -> None:
    """The value is the vCPU's; whether there is one says the saved image, and that was saved under the thread's own."""
    world, guest = entered()
    task = world.tasks["a/main"]
    world.leave(guest)
    world.user_write(task, XFEATURE_PKRU, 0, threads_own.to_bytes(4, "little"))
    world.enter(guest, task.fpu)
    world.xsetbv(guest, 0x2E7)
    world.guest_write(guest, XFEATURE_PKRU, 0, (0x1234).to_bytes(4, "little"))
    world.leave(guest)
    exported = get_xsave2(guest.vcpu)
    assert isinstance(exported, bytes)
    assert guest.vcpu.pkru == 0x1234
    assert (bool(xstate_bv(exported) >> XFEATURE_PKRU & 1), exported[2688:2690] == b"\x34\x12") == (leaves, leaves)


@pytest.mark.parametrize(
    ("cpuid", "exported"),
    [pytest.param(0, 3, id="none: x87 and SSE still"), pytest.param(7, 7, id="AVX"), pytest.param(AMX, 0xE7, id="all")],
)
def test_export_is_cut_to_the_guests_cpuid(cpuid: int, exported: int) -> None:
    """Import is not judged by the guest's CPUID, export is cut to it (bugs B12, B13)."""
    _, vcpu = outside(cpuid=cpuid)
    assert set_xsave(vcpu, buffer(0xE7)) == StateSet()
    assert xstate_bv(get_xsave2(vcpu)) == exported


def test_a_buffer_of_an_amx_host_on_one_without() -> None:
    """EINVAL where tile data is in it; where it is in init state the same 11,008 bytes go in."""
    _, vcpu = outside("ice-lake", permitted=False)
    before = everything(vcpu)
    assert set_xsave(vcpu, buffer(TILE_DATA | 3)) is Errno.EINVAL
    assert everything(vcpu) == before
    assert set_xsave(vcpu, buffer(0xE7)) == StateSet()


# -- XCRS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("xcrs", "flags", "result", "xcr0"),
    [
        pytest.param([Xcr(0, 7)], 0, StateSet(), 7, id="XCR0 = 7"),
        pytest.param([Xcr(0, 5)], 0, Errno.EINVAL, 1, id="a value XSETBV would refuse"),
        pytest.param([Xcr(0, 7)], 1, Errno.EINVAL, 1, id="flags"),
        pytest.param([], 0, StateSet(), 1, id="no entry"),
        pytest.param([Xcr(1, 0xBAD)], 0, StateSet(), 1, id="XCR1 is ignored, whatever its value"),
        pytest.param([Xcr(1, 0xBAD), Xcr(0, 3)], 0, StateSet(), 3, id="and does not hide XCR0"),
        pytest.param([Xcr(0, 3), Xcr(0, 5)], 0, StateSet(), 3, id="the first XCR0 counts"),
        pytest.param([Xcr(1, 0)] * 16, 0, StateSet(), 1, id="16 entries"),
        pytest.param([Xcr(1, 0)] * 16 + [Xcr(0, 7)], 0, Errno.EINVAL, 1, id="17 entries"),
    ],
)
def test_set_xcrs(xcrs: list[Xcr], flags: int, result: object, xcr0: int) -> None:
    """The verdict, and XCR0 afterwards."""
    _, vcpu = outside()
    assert set_xcrs(vcpu, xcrs, flags) == result
    assert vcpu.xcr0 == xcr0
    assert get_xcrs(vcpu) == [Xcr(0, xcr0)]


@pytest.mark.parametrize(
    ("xfd", "permitted", "memory", "errno", "size"),
    [
        pytest.param(0, True, True, Errno.OK, 10752, id="XFD is 0: it grows"),
        pytest.param(0, True, False, Errno.ENOMEM, 2560, id="no memory"),
        pytest.param(0, False, True, Errno.EPERM, 2560, id="no permission"),
        pytest.param(TILE_DATA, True, False, Errno.OK, 2560, id="XFD disables it: no growth, no need of memory"),
        pytest.param(TILE_DATA, False, True, Errno.OK, 2560, id="nor of permission"),
    ],
)
def test_set_xcrs_grows(xfd: int, permitted: bool, memory: bool, errno: Errno, size: int) -> None:
    """Room for what XCR0 enables and XFD does not disable comes first; a failure changes nothing."""
    world, vcpu = outside(permitted=permitted)
    assert set_msrs(vcpu, [MsrEntry(XFD, xfd)]) == MsrsSet(1)
    world.fail_next = not memory
    before = everything(vcpu)
    result = set_xcrs(vcpu, [Xcr(0, AMX)])
    assert (result is errno) if errno is not Errno.OK else isinstance(result, StateSet)
    assert vcpu.fpstate.size == size
    assert vcpu.xcr0 == (AMX if errno is Errno.OK else 1)
    if errno is not Errno.OK:
        assert everything(vcpu) == before
    world.fail_next = False
    check_core(world.view())


def test_xcrs_without_xsave() -> None:
    """An empty table, and EINVAL for every set."""
    _, vcpu = outside("sapphire-rapids", permitted=False)
    vcpu.vm.host.config = boot(without_compaction(xsave=False))
    assert get_xcrs(vcpu) == []
    assert set_xcrs(vcpu, []) is Errno.EINVAL


# -- MSRS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "processed", "xfd", "xfd_err"),
    [
        pytest.param([], 0, 0, 0, id="none"),
        pytest.param([(XFD, TILE_DATA)], 1, TILE_DATA, 0, id="XFD"),
        pytest.param([(XFD_ERR, TILE_DATA), (XFD, TILE_DATA)], 2, TILE_DATA, TILE_DATA, id="XFD_ERR and XFD"),
        pytest.param([(XFD, 1 << 17)], 0, 0, 0, id="bit 17 is refused at 0"),
        pytest.param([(XFD, TILE_DATA), (XFD_ERR, 1)], 1, TILE_DATA, 0, id="the second is refused: 1"),
        pytest.param([(XFD, TILE_DATA), (0x10, 0), (XFD_ERR, TILE_DATA)], 1, TILE_DATA, 0, id="an unknown MSR ends it"),
        pytest.param([(XFD, TILE_DATA), (XFD, 0)], 2, 0, 0, id="one twice"),
        pytest.param([(XSS, 1 << 63)], 0, 0, 0, id="XSS has its rules"),
    ],
)
def test_set_msrs(entries: list[tuple[int, int]], processed: int, xfd: int, xfd_err: int) -> None:
    """How many were done: the index of the first that was refused. What came before it is written."""
    world, vcpu = outside()
    assert set_msrs(vcpu, [MsrEntry(*entry) for entry in entries]) == MsrsSet(processed)
    assert (vcpu.fpstate.xfd, vcpu.guest.xfd_err) == (xfd, xfd_err)
    check_core(world.view())


def test_get_msrs() -> None:
    """Values up to the first number that is not known."""
    _, vcpu = outside()
    set_msrs(vcpu, [MsrEntry(XFD, TILE_DATA), MsrEntry(XFD_ERR, TILE_DATA), MsrEntry(XSS, 0x1800)])
    assert get_msrs(vcpu, [XSS, XFD, XFD_ERR]) == [
        MsrEntry(XSS, 0x1800),
        MsrEntry(XFD, TILE_DATA),
        MsrEntry(XFD_ERR, TILE_DATA),
    ]
    assert get_msrs(vcpu, [XFD, 0x10, XFD_ERR]) == [MsrEntry(XFD, TILE_DATA)]


@pytest.mark.parametrize(("count", "fine"), [(255, True), (256, False)])
def test_too_many_msrs(count: int, fine: bool) -> None:
    """256 are E2BIG, both ways, and none is written."""
    _, vcpu = outside()
    done = set_msrs(vcpu, [MsrEntry(XFD, TILE_DATA)] * count)
    assert done == (MsrsSet(count) if fine else Errno.E2BIG)
    assert vcpu.fpstate.xfd == (TILE_DATA if fine else 0)
    assert (get_msrs(vcpu, [XFD] * count) is Errno.E2BIG) is not fine


def test_userspace_needs_no_cpuid_for_xfd() -> None:
    """A guest without XFD takes #GP; userspace reads 0 and may write 0, and no bit it cannot have."""
    _, vcpu = outside("zen4", permitted=False)
    assert get_msrs(vcpu, [XFD, XFD_ERR]) == [MsrEntry(XFD, 0), MsrEntry(XFD_ERR, 0)]
    assert set_msrs(vcpu, [MsrEntry(XFD, 0), MsrEntry(XFD, TILE_DATA)]) == MsrsSet(1)


@pytest.mark.parametrize(
    ("permitted", "memory", "errno"),
    [
        pytest.param(True, True, Errno.OK, id="permission and memory"),
        pytest.param(True, False, Errno.ENOMEM, id="no memory"),
        pytest.param(False, True, Errno.EPERM, id="no permission"),
    ],
)
def test_set_msrs_grows_before_the_first_entry(permitted: bool, memory: bool, errno: Errno) -> None:
    """XFD going to 0 under an XCR0 with tiles: room first, and without it not one entry is written."""
    world, vcpu = outside(permitted=permitted)
    set_msrs(vcpu, [MsrEntry(XFD, TILE_DATA)])
    assert set_xcrs(vcpu, [Xcr(0, AMX)]) == StateSet()
    world.fail_next = not memory
    before = everything(vcpu)
    result = set_msrs(vcpu, [MsrEntry(XFD_ERR, TILE_DATA), MsrEntry(XFD, 0), MsrEntry(XFD, 1)])
    if errno is Errno.OK:
        assert isinstance(result, MsrsSet)
        assert (result.processed, vcpu.fpstate.size, vcpu.guest.xfd_err) == (2, 10752, TILE_DATA)
    else:
        assert result is errno
        assert everything(vcpu) == before
    check_core(world.view())


@pytest.mark.parametrize("values", [(0,), (0, TILE_DATA), (TILE_DATA, 0), (0, TILE_DATA, TILE_DATA)])
def test_set_msrs_grows_for_any_of_its_entries(values: tuple[int, ...]) -> None:
    """The run is one: what any of its writes needs is there before the first, though the last arms XFD again."""
    world, vcpu = outside(permitted=True)
    set_msrs(vcpu, [MsrEntry(XFD, TILE_DATA)])
    assert set_xcrs(vcpu, [Xcr(0, AMX)]) == StateSet()
    result = set_msrs(vcpu, [MsrEntry(XFD, value) for value in values])
    assert isinstance(result, MsrsSet)
    assert (result.processed, vcpu.fpstate.size, vcpu.fpstate.xfd) == (len(values), 10752, values[-1])
    check_core(world.view())


def test_the_first_nonzero_xfd_arms_nm() -> None:
    """Whoever writes it: from then on #NM is intercepted; with the container at full size XFD is passed through."""
    _, vcpu = outside()
    set_msrs(vcpu, [MsrEntry(XFD, 0)])
    assert not vcpu.nm_intercept
    set_msrs(vcpu, [MsrEntry(XFD, TILE_DATA)])
    assert (vcpu.nm_intercept, vcpu.xfd_passthrough) == (True, False)
    set_xsave(vcpu, buffer(3))
    set_msrs(vcpu, [MsrEntry(XFD, 0)])
    set_xcrs(vcpu, [Xcr(0, AMX)])
    assert vcpu.xfd_passthrough


# -- confidential ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protected", [False, True])
def test_confidential(protected: bool) -> None:
    """The older way: zeros out, sets ignored. A VM type with protected state: EINVAL. XFD is switched all the same."""
    _, vcpu = outside(confidential=True)
    vcpu.vm.has_protected_state = protected
    before = everything(vcpu)
    assert get_xsave2(vcpu) == (Errno.EINVAL if protected else bytes(4096))
    assert get_xsave(vcpu) == (Errno.EINVAL if protected else bytes(4096))
    assert set_xsave(vcpu, buffer(TILE_DATA | 1 << 63)) == (Errno.EINVAL if protected else StateSet())
    assert set_xsave(vcpu, b"short") is Errno.EFAULT
    assert everything(vcpu) == before
    assert get_xcrs(vcpu) == (Errno.EINVAL if protected else [Xcr(0, 1)])
    assert set_xcrs(vcpu, [Xcr(0, 7)]) == (Errno.EINVAL if protected else StateSet())
    assert set_msrs(vcpu, [MsrEntry(XFD, TILE_DATA)]) == MsrsSet(1)
