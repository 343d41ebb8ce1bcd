"""The user format: what leaves an image, what goes in, and what is refused.

Reference: arch/x86/kernel/fpu/xstate.c, __copy_xstate_to_uabi_buf() and copy_uabi_to_xstate(); the buffers of a real
KVM are compared by tests/differential.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpu_core.errors import CoreBug, Errno
from fpu_core.fpstate import image_offsets
from fpu_core.fpu import FpuGuest
from fpu_core.guest import update_guest_xfd
from fpu_core.realloc import Reallocated, ReallocFailed, realloc_guest_image
from fpu_core.rules import KERNEL_6_12, KERNEL_6_18, KernelRules
from fpu_core.uabi import (
    Imported,
    copy_uabi_to_xstate,
    copy_xstate_to_uabi,
    fpu_copy_guest_fpstate_to_uabi,
    fpu_copy_uabi_to_guest_fpstate,
)
from fpu_core.xfeature import XFEATURE_MASK_FPSSE as FPSSE
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA as TILE_DATA
from fpu_core.xfeature import for_each_set_bit
from tests.core.rig import SPR, Rig, container, without_compaction
from tests.core.samples import random_bytes

ALL = 0x602E7
PKRU = 1 << 9
PROFILES = [
    pytest.param(lambda: Rig.create(SPR), id="compacted images"),
    pytest.param(lambda: Rig.create(without_compaction()), id="images in the standard format"),
]


def fill(rig: Rig, guest: FpuGuest, bv: int, seed: int = 1) -> dict[int, bytes]:
    """Put random bytes into the components of ``bv``, a legal MXCSR among them; returns what was put where."""
    fpstate = container(guest)
    offsets = image_offsets(fpstate, rig.config)
    placed = {}
    for nr in for_each_set_bit(bv):
        size = rig.config.table.size_bytes(nr)
        raw = bytearray(random_bytes(seed + nr, size))
        if nr == 0:
            struct.pack_into("<II", raw, 24, 0x1FA0, rig.config.mxcsr_mask)
        fpstate.regs[offsets[nr] : offsets[nr] + size] = placed[nr] = bytes(raw)
    fpstate.xstate_bv = bv
    return placed


def blank(bv: int = 0, *, size: int = 16384, mxcsr: int = 0x1F80, xcomp_bv: int = 0) -> bytearray:
    """A buffer that says it holds ``bv``, with zeros everywhere else."""
    buf = bytearray(size)
    struct.pack_into("<I", buf, 24, mxcsr)
    struct.pack_into("<QQ", buf, 512, bv, xcomp_bv)
    return buf


def u64(buf: bytes, offset: int) -> int:
    """The word at ``offset``."""
    return int.from_bytes(buf[offset : offset + 8], "little")


# -- out ---------------------------------------------------------------------------------------------------------------


def test_init_state() -> None:
    """x87 and MXCSR have their init values, the software bytes say what the kernel knows, all else is zero."""
    rig = Rig.create()
    buf = fpu_copy_guest_fpstate_to_uabi(rig.host, rig.guest(), 4096, ALL, pkru=5)
    found = {offset: byte for offset, byte in enumerate(buf) if byte}
    assert (buf[0:2], u64(buf, 24), u64(buf, 464)) == (b"\x7f\x03", 0xFFFF_0000_1F80, ALL)
    assert set(found) <= {0, 1, *range(24, 32), *range(464, 472)}
    assert len(buf) == 4096


@pytest.mark.parametrize("create", PROFILES)
def test_every_component_is_where_cpuid_says(create: Callable[[], Rig]) -> None:
    """The standard offset of each, whatever the image's own layout; gaps are zeros."""
    rig = create()
    guest = rig.guest()
    bv = container(guest).user_xfeatures & ~PKRU
    placed = fill(rig, guest, bv)
    buf = copy_xstate_to_uabi(rig.config, container(guest), 4096, bv, 0)
    covered = set(range(416, 576))
    for nr, raw in placed.items():
        offset = rig.config.table.components[nr].std_offset
        assert offset is not None
        assert buf[offset : offset + len(raw)] == raw
        covered |= set(range(offset, offset + len(raw)))
    assert not any(byte for offset, byte in enumerate(buf) if offset not in covered)
    assert (u64(buf, 512), u64(buf, 520)) == (bv, 0)


@pytest.mark.parametrize(
    ("bv", "fcw", "mxcsr", "xmm"),
    [
        pytest.param(1, True, False, False, id="x87 alone does not bring MXCSR"),
        pytest.param(2, False, True, True, id="SSE brings MXCSR and XMM"),
        pytest.param(4, False, True, False, id="YMM brings MXCSR"),
        pytest.param(0, False, False, False, id="nothing"),
    ],
)
def test_the_legacy_region(bv: int, fcw: bool, mxcsr: bool, xmm: bool) -> None:
    """Which of x87, MXCSR and XMM come from the image; the others have their init values."""
    rig = Rig.create()
    guest = rig.guest()
    fill(rig, guest, 7)
    container(guest).xstate_bv = bv
    regs = container(guest).regs
    buf = copy_xstate_to_uabi(rig.config, container(guest), 4096, ALL, 0)
    assert (buf[0:24] == regs[0:24], buf[32:160] == regs[32:160]) == (fcw, fcw)
    assert buf[24:28] == struct.pack("<I", 0x1FA0 if mxcsr else 0x1F80)
    assert (buf[160:416] == regs[160:416], any(buf[160:416])) == (xmm, xmm)


@pytest.mark.parametrize(
    ("constrain", "exported"),
    [
        pytest.param(ALL, 0x2E7, id="all the container has"),
        pytest.param(7, 7, id="a guest that may have AVX only"),
        pytest.param(0, 0, id="nothing"),
    ],
)
def test_constrained(constrain: int, exported: int) -> None:
    """What the guest was never given does not leave, not a byte of it (bug B12). Supervisor state never does."""
    rig = Rig.create()
    guest = rig.guest()
    fill(rig, guest, 0x2E7 | 1 << 11)
    buf = copy_xstate_to_uabi(rig.config, container(guest), 4096, constrain, pkru=9)
    assert u64(buf, 512) == exported
    assert any(buf[576:]) == bool(exported & ~3)


def test_pkru_is_the_owners() -> None:
    """The value handed in, not the image's; and where XSTATE_BV has none, none."""
    rig = Rig.create()
    guest = rig.guest()
    fill(rig, guest, PKRU)
    assert u64(copy_xstate_to_uabi(rig.config, container(guest), 4096, ALL, 0xDEAD), 2688) == 0xDEAD
    container(guest).xstate_bv = 1
    assert u64(copy_xstate_to_uabi(rig.config, container(guest), 4096, ALL, 0xDEAD), 2688) == 0


def test_never_past_the_size() -> None:
    """A smaller buffer gets the beginning."""
    rig = Rig.create()
    guest = rig.guest()
    fill(rig, guest, 0x2E7)
    whole = copy_xstate_to_uabi(rig.config, container(guest), 4096, ALL, 1)
    for size in (0, 1, 463, 512, 576, 2691):
        assert copy_xstate_to_uabi(rig.config, container(guest), size, ALL, 1) == whole[:size]


def test_live_registers_are_no_image() -> None:
    """A vCPU that is loaded cannot be read or written here: its registers are elsewhere."""
    rig = Rig.create()
    guest = rig.guest()
    container(guest).in_use = True
    with pytest.raises(CoreBug, match="registers are on a CPU"):
        fpu_copy_guest_fpstate_to_uabi(rig.host, guest, 4096, ALL, 0)
    with pytest.raises(CoreBug, match="registers are on a CPU"):
        fpu_copy_uabi_to_guest_fpstate(rig.host, guest, bytes(4096), ALL)


# -- in ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("buf", "errno"),
    [
        pytest.param(blank(0x2E7), Errno.OK, id="everything a default container holds"),
        pytest.param(blank(TILE_DATA), Errno.EINVAL, id="tile data, for which there is no room"),
        pytest.param(blank(1 << 11), Errno.EINVAL, id="a supervisor component"),
        pytest.param(blank(1 << 63), Errno.EINVAL, id="bit 63"),
        pytest.param(blank(3, xcomp_bv=1 << 63 | 3), Errno.EINVAL, id="a compacted buffer"),
        pytest.param(blank(3, xcomp_bv=1), Errno.EINVAL, id="any bit in XCOMP_BV"),
        pytest.param(blank(1, mxcsr=1 << 16), Errno.EINVAL, id="x87 with a reserved MXCSR bit"),
        pytest.param(blank(2, mxcsr=1 << 16), Errno.EINVAL, id="SSE with a reserved MXCSR bit"),
        pytest.param(blank(4, mxcsr=1 << 31), Errno.EINVAL, id="YMM with a reserved MXCSR bit"),
        pytest.param(blank(0xE0, mxcsr=1 << 16), Errno.OK, id="AVX-512 alone: MXCSR is not looked at"),
        pytest.param(blank(0, mxcsr=1 << 16), Errno.OK, id="nothing: MXCSR is not looked at"),
        pytest.param(blank(3, size=575), Errno.EFAULT, id="shorter than the header"),
        pytest.param(blank(0x2E7, size=2695), Errno.EFAULT, id="the last component is cut"),
        pytest.param(blank(0x2E7, size=2696), Errno.OK, id="the last component is just there"),
        pytest.param(blank(1 << 63, size=576), Errno.EINVAL, id="wrong and cut: the header comes first"),
    ],
)
def test_verdict(buf: bytearray, errno: Errno) -> None:
    """One buffer and its errno; what is refused changes nothing."""
    rig = Rig.create()
    guest = rig.guest()
    fill(rig, guest, 0x2E7)
    before = container(guest).image()
    result = copy_uabi_to_xstate(rig.config, container(guest), bytes(buf))
    assert (result is errno) if errno is not Errno.OK else isinstance(result, Imported)
    if errno is not Errno.OK:
        assert container(guest).image() == before


@pytest.mark.parametrize("byte", range(16, 64))
def test_reserved_header_bytes(byte: int) -> None:
    """Each of the 48 must be zero."""
    rig = Rig.create()
    guest = rig.guest()
    buf = blank(3)
    buf[512 + byte] = 1
    assert copy_uabi_to_xstate(rig.config, container(guest), bytes(buf)) is Errno.EINVAL


def test_what_is_left_out_becomes_init() -> None:
    """Absent components lose their XSTATE_BV bit and keep their bytes; supervisor bits stay."""
    rig = Rig.create()
    guest = rig.guest()
    fill(rig, guest, 0x2E7 | 1 << 11)
    before = bytes(container(guest).regs)
    assert copy_uabi_to_xstate(rig.config, container(guest), bytes(blank(4))) == Imported(None)
    assert container(guest).xstate_bv == 4 | 1 << 11
    assert container(guest).regs[160:416] == before[160:416]


def test_mxcsr_without_x87() -> None:
    """SSE or YMM alone store MXCSR and its mask, although the x87 component that they lie in is left out."""
    for bv in (2, 4, 6):
        rig = Rig.create()
        guest = rig.guest()
        copy_uabi_to_xstate(rig.config, container(guest), bytes(blank(bv, mxcsr=0x1FBF)))
        assert container(guest).regs[24:28] == struct.pack("<I", 0x1FBF)


def test_pkru_of_the_buffer() -> None:
    """Its own value where XSTATE_BV has the bit; None where not, for the caller to say what that means."""
    rig = Rig.create()
    guest = rig.guest()
    buf = blank(PKRU)
    struct.pack_into("<I", buf, 2688, 0x55555554)
    assert copy_uabi_to_xstate(rig.config, container(guest), bytes(buf)) == Imported(0x55555554)
    assert copy_uabi_to_xstate(rig.config, container(guest), bytes(blank(1))) == Imported(None)


class Warnings:
    """A tracer that keeps what the kernel would warn of."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, condition: str) -> None:
        """Keep it."""
        self.lines.append(condition)

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args: None


@pytest.mark.parametrize(
    ("bv", "xcr0", "warns"),
    [
        pytest.param(TILE_DATA | 3, ALL, 1, id="under XFD: a warning"),
        pytest.param(TILE_DATA | 3, 3, 0, id="outside XCR0, which is asked first: no warning"),
        pytest.param(TILE_DATA | 1 << 63, ALL, 0, id="outside XCR0 in another bit: no warning either"),
    ],
)
@pytest.mark.parametrize("rules", [KERNEL_6_18, KERNEL_6_12], ids=lambda rules: rules.name)
def test_what_xfd_disables_cannot_be_imported(bv: int, xcr0: int, warns: int, rules: KernelRules) -> None:
    """EINVAL: it could never be loaded (bug B1)."""
    tracer = Warnings()
    rig = Rig.create(rules=rules, tracer=tracer)
    rig.permit()
    guest = rig.guest()
    assert isinstance(realloc_guest_image(rig.fpu, guest, TILE_DATA), Reallocated)
    update_guest_xfd(None, guest, TILE_DATA)
    assert fpu_copy_uabi_to_guest_fpstate(rig.host, guest, bytes(blank(bv)), xcr0) is Errno.EINVAL
    assert tracer.lines == ["ustate->xsave.header.xfeatures & kstate->xfd"] * warns


# -- a host without XSAVE ----------------------------------------------------------------------------------------------


def test_without_xsave() -> None:
    """512 bytes as they are, with XSTATE_BV for a host that has XSAVE; MXCSR and XSTATE_BV are judged going in."""
    rig = Rig.create(without_compaction(xsave=False))
    guest = rig.guest()
    container(guest).regs[:512] = random_bytes(3, 512)
    buf = fpu_copy_guest_fpstate_to_uabi(rig.host, guest, 4096, 0, 0)
    assert (buf[:512], u64(buf, 512), any(buf[520:])) == (bytes(container(guest).regs[:512]), FPSSE, False)
    for wrong in (blank(4), blank(0, mxcsr=1 << 16)):
        assert fpu_copy_uabi_to_guest_fpstate(rig.host, guest, bytes(wrong), 0) is Errno.EINVAL
        assert bytes(container(guest).regs[:512]) == buf[:512]
    assert fpu_copy_uabi_to_guest_fpstate(rig.host, guest, bytes(blank(3)), 0) == Imported(None)
    assert container(guest).regs[:512] == blank(3)[:512]


# -- there and back ----------------------------------------------------------------------------------------------------


@given(bv=st.integers(0, 0x3FF), seed=st.integers(0, 1 << 32), xmm=st.booleans())
@pytest.mark.parametrize("create", PROFILES)
def test_round_trip(create: Callable[[], Rig], bv: int, seed: int, xmm: bool) -> None:
    """What leaves one image and goes into another leaves that one as the same bytes; and every invariant holds."""
    rig = create()
    one, other = rig.guest(), rig.guest()
    fill(rig, one, bv & container(one).user_xfeatures, seed)
    fill(rig, other, container(other).user_xfeatures if xmm else 0, seed + 77)
    rig.check()
    buf = copy_xstate_to_uabi(rig.config, container(one), 4096, ALL, seed & 0xFFFF_FFFF)
    imported = copy_uabi_to_xstate(rig.config, container(other), buf)
    assert isinstance(imported, Imported)
    pkru = 0 if imported.pkru is None else imported.pkru
    assert copy_xstate_to_uabi(rig.config, container(other), 4096, ALL, pkru) == buf
    rig.check()


@given(bv=st.integers(0, 0x3FFFF), seed=st.integers(0, 1 << 32))
def test_a_parked_image_survives_growth(bv: int, seed: int) -> None:
    """A container that grows while nobody runs it keeps every byte, whatever the new layout; supervisor state too."""
    rig = Rig.create()
    rig.permit()
    guest = rig.guest()
    old = container(guest)
    placed = fill(rig, guest, bv & old.xfeatures, seed)
    before = copy_xstate_to_uabi(rig.config, old, 4096, ALL, 3)
    assert isinstance(realloc_guest_image(rig.fpu, guest, TILE_DATA), Reallocated)
    new = container(guest)
    assert copy_xstate_to_uabi(rig.config, new, 4096, ALL, 3) == before
    offsets = image_offsets(new, rig.config)
    for nr, raw in placed.items():
        assert new.regs[offsets[nr] : offsets[nr] + len(raw)] == raw
    assert (new.xstate_bv, new.xfeatures) == (old.xstate_bv, old.xfeatures | TILE_DATA)
    rig.check()


@pytest.mark.parametrize("permitted", [True, False])
def test_a_parked_image_that_cannot_grow(permitted: bool) -> None:
    """ENOMEM or EPERM: the same container with the same bytes."""
    rig = Rig.create()
    if permitted:
        rig.permit()
    guest = rig.guest()
    fill(rig, guest, 0x2E7)
    old, before = container(guest), container(guest).image()
    rig.fail_allocations()
    result = realloc_guest_image(rig.fpu, guest, TILE_DATA)
    assert isinstance(result, ReallocFailed)
    assert result.errno is (Errno.ENOMEM if permitted else Errno.EPERM)
    assert container(guest) is old
    assert old.image() == before
