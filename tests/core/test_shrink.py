"""A container that shrinks: all that is in use stays, nothing is allocated, and the next growth is as the first."""

from __future__ import annotations

import pytest

from fpu_core.cpuid import CpuidProfile
from fpu_core.errors import CoreBug
from fpu_core.fpu import KVM_XSAVE_BYTES, FpuGuest, fpstate_set_realloc_request
from fpu_core.guest import free_guest_fpstate, shrink_guest_fpstate, update_guest_xfd
from fpu_core.swap import swap_in, swap_out
from fpu_core.xfeature import XFEATURE_APX, XFEATURE_SSE, XFEATURE_XTILE_DATA, XFEATURE_YMM
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA as TILE_DATA
from tests.core.rig import SPR, Lines, Rig, container, with_apx, without_compaction
from tests.core.samples import random_bytes

PROCESSORS = [
    pytest.param(SPR, id="compacted"),
    pytest.param(without_compaction(SPR), id="standard format"),
    pytest.param(with_apx(), id="a component behind tile data"),
]


def grown(rig: Rig, *, xfd: int = 0) -> FpuGuest:
    """A vCPU whose container has room for tiles, after a run in which it loaded some registers."""
    rig.permit()
    guest = rig.guest()
    swap_in(rig.fpu, guest)
    fpstate_set_realloc_request(guest, TILE_DATA, 0)
    swap_out(rig.fpu, guest)
    swap_in(rig.fpu, guest)
    for nr in loaded(rig):
        rig.cpu.write_register(nr, 0, content(nr))
    swap_out(rig.fpu, guest)
    if xfd:
        update_guest_xfd(None, guest, xfd)
    return guest


def loaded(rig: Rig) -> list[int]:
    """The components that the guest uses."""
    known = rig.config.guest_default_features
    return [nr for nr in (XFEATURE_SSE, XFEATURE_YMM, XFEATURE_APX) if known >> nr & 1]


def content(nr: int) -> bytes:
    """What it has in them."""
    return random_bytes(nr, 128)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_a_container_that_shrinks_keeps_what_is_in_use(processor: CpuidProfile | str) -> None:
    """Registers, MXCSR and XFD are what they were, at their new places; features and sizes are the default ones."""
    rig = Rig.create(processor)
    guest, never_grown = grown(rig, xfd=TILE_DATA), rig.guest()
    before = container(guest)
    freed = shrink_guest_fpstate(rig.fpu, guest)
    rig.check()
    after, default = container(guest), container(never_grown)
    assert freed == before.size - after.size
    for name in ("size", "user_size", "xfeatures", "user_xfeatures", "xcomp_bv", "is_valloc", "is_guest", "in_use"):
        assert getattr(after, name) == getattr(default, name)
    assert (guest.xfeatures, guest.uabi_size) == (never_grown.xfeatures, never_grown.uabi_size)
    assert guest.uabi_size == KVM_XSAVE_BYTES
    assert (after.xfd, after.xstate_bv) == (TILE_DATA, before.xstate_bv)
    assert after.regs[:512] == before.regs[:512]
    swap_in(rig.fpu, guest)
    for nr in loaded(rig):
        assert rig.cpu.read_register(nr)[:128] == content(nr)
    swap_out(rig.fpu, guest)
    rig.check()


def test_it_grows_again_as_the_first_time() -> None:
    """And what it then loads into its tiles survives, like the rest."""
    rig = Rig.create()
    guest = grown(rig, xfd=TILE_DATA)
    shrink_guest_fpstate(rig.fpu, guest)
    swap_in(rig.fpu, guest)
    fpstate_set_realloc_request(guest, TILE_DATA, 0)
    swap_out(rig.fpu, guest)
    assert (container(guest).size, container(guest).xfd, guest.uabi_size) == (10_752, 0, 11_008)
    swap_in(rig.fpu, guest)
    rig.cpu.write_register(XFEATURE_XTILE_DATA, 0, b"tile")
    swap_out(rig.fpu, guest)
    swap_in(rig.fpu, guest)
    assert rig.cpu.read_register(XFEATURE_XTILE_DATA)[:4] == b"tile"
    assert rig.cpu.read_register(XFEATURE_YMM)[:128] == content(XFEATURE_YMM)
    swap_out(rig.fpu, guest)
    rig.check()


def test_shrinking_allocates_nothing() -> None:
    """So it works where there is no memory at all, and under a limit that is far below what is used."""
    tracer = Lines()
    rig = Rig.create(tracer=tracer)
    guest = grown(rig, xfd=TILE_DATA)
    rig.fail_allocations()
    rig.fpu.account.set_limit(1)
    allocations = rig.fpu.account.allocations
    tracer.lines.clear()
    assert shrink_guest_fpstate(rig.fpu, guest) == 8192
    assert tracer.lines == ["shrink 10816 to 2624"]
    assert (rig.fpu.account.used_bytes, rig.fpu.account.allocations) == (2624, allocations)
    free_guest_fpstate(rig.fpu, guest)
    assert rig.host.allocator.host.used_bytes == 0
    assert rig.host.counts.shrinks == 1


@pytest.mark.parametrize("why", ["swapped in", "tiles in use", "confidential"])
def test_what_must_not_shrink_is_our_bug(why: str) -> None:
    """Who shrinks asks first; the core only makes sure."""
    rig = Rig.create()
    guest = grown(rig)
    if why == "swapped in":
        swap_in(rig.fpu, guest)
    elif why == "tiles in use":
        swap_in(rig.fpu, guest)
        rig.cpu.write_register(XFEATURE_XTILE_DATA, 0, b"tile")
        swap_out(rig.fpu, guest)
    else:
        container(guest).is_confidential = True
    with pytest.raises(CoreBug, match="shrink of"):
        shrink_guest_fpstate(rig.fpu, guest)
    assert container(guest).size == 10_752
