"""``three_buffer``: how often it saves, loads and copies, exactly, and what its buffers say of themselves.

Reference: arch/x86/kvm/x86.c of 5.15, kvm_save_current_fpu(), kvm_load_guest_fpu(), kvm_put_guest_fpu().
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict

import pytest

from fpu_core.errors import CoreBug
from fpu_core.fpu import Fpu, FpuGuest
from fpu_core.sched import switch_fpu_return, switch_to
from fpu_core.task import use_feature
from fpu_core.three_buffer import alloc_kvm_buffers, swap_in, swap_out
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA as TILE_DATA
from tests.core.rig import Rig, container

LARGEST = 10752


def _guest(rig: Rig) -> FpuGuest:
    guest = FpuGuest()
    assert alloc_kvm_buffers(rig.fpu, guest) is None
    rig.guests.append(guest)
    return guest


@pytest.mark.parametrize("permitted", [False, True])
def test_what_the_buffers_hold(permitted: bool) -> None:
    """All have the largest size; ``guest_fpu`` has the default features of a guest and, permitted, tile data too."""
    rig = Rig.create()
    if permitted:
        rig.permit()
    guest = _guest(rig)
    assert guest.buffers is not None
    features = rig.config.guest_default_features | (TILE_DATA if permitted else 0)
    assert (container(guest).xfeatures, guest.xfeatures) == (features, features)
    assert container(guest).user_xfeatures == features & rig.config.user.max_features
    sizes = [(each.size, each.user_size) for each in (guest.buffers.guest_fpu, guest.buffers.user_fpu)]
    assert sizes == [(LARGEST, 11008 if permitted else 2816), (LARGEST, 2816)]
    rig.check()


def _live(rig: Rig, _guest: FpuGuest) -> None:
    """Nothing comes in between."""
    assert not rig.fpu.need_load


def _preempted(rig: Rig, _guest: FpuGuest) -> None:
    """The registers go to memory, and stay there."""
    switch_to(rig.cpu, None)
    switch_to(rig.cpus[0], rig.fpu)


@pytest.mark.parametrize(
    ("between", "cost"),
    [
        pytest.param(_live, {"saves": 1, "restores": 1, "xfd_copies": 2, "bytes_copied": 0}, id="live: XSAVE, XRSTOR"),
        pytest.param(
            _preempted,
            {"saves": 1, "restores": 1, "xfd_copies": 2, "bytes_copied": LARGEST},
            id="preempted: saved by the switch, copied by KVM",
        ),
    ],
)
@pytest.mark.parametrize("leaving", [False, True], ids=["swap-in", "swap-out"])
def test_what_a_swap_costs(between: Callable[[Rig, FpuGuest], None], cost: dict[str, int], leaving: bool) -> None:
    """Each way: one save or one copy of a whole image, one load, and XFD from one container to another twice."""
    rig = Rig.create()
    guest = _guest(rig)
    swap_in(rig.fpu, guest)
    swap_out(rig.fpu, guest)
    if leaving:
        swap_in(rig.fpu, guest)
    before = asdict(copy.copy(rig.cpu.counters))
    between(rig, guest)
    (swap_out if leaving else swap_in)(rig.fpu, guest)
    after = asdict(rig.cpu.counters)
    assert {name: after[name] - before[name] for name in cost} == cost
    rig.check()


def test_the_first_swap_makes_the_threads_image_large() -> None:
    """It is copied whole into a container of the largest size, once; the preempted task is none the worse for it."""
    rig = Rig.create()
    use_feature(rig.fpu, 2, 0, b"user")
    guest, points = _guest(rig), list[str]()
    rig.host.preemptible = points.append
    used = rig.fpu.account.used_bytes
    for _ in range(2):
        swap_in(rig.fpu, guest)
        swap_out(rig.fpu, guest)
    assert points == ["realloc: allocated, not yet locked"]
    assert (rig.fpu.fpstate.size, rig.fpu.account.used_bytes - used) == (LARGEST, LARGEST + 64)
    assert rig.fpu.fpstate.user_size == 2816
    assert rig.cpu.counters.bytes_copied == 2560
    assert rig.cpu.read_register(2).startswith(b"user")
    rig.check()


def test_an_image_says_nothing_of_what_it_held_before() -> None:
    """The user's image is described anew at the swap-out: its bits are those of no registers until it is saved."""
    rig = Rig.create()
    guest = _guest(rig)
    swap_in(rig.fpu, guest)
    rig.cpu.write_register(7, 0, b"guest")
    switch_to(rig.cpu, None)
    switch_to(rig.cpus[0], rig.fpu)
    switch_fpu_return(rig.fpu)
    assert rig.fpu.fpstate.xstate_bv & 1 << 7
    swap_out(rig.fpu, guest)
    assert (rig.fpu.fpstate.xstate_bv, rig.fpu.fpstate.xfd) == (0, TILE_DATA)


def test_what_is_refused_as_our_bug() -> None:
    """In twice, by the same thread or by another; out by a thread that runs another vCPU, or none."""
    rig = Rig.create()
    guest, second = _guest(rig), _guest(rig)
    other = Fpu(rig.host, "other", account=rig.fpu.account, leader=rig.fpu)
    other.need_load = True
    switch_to(rig.cpus[1], other)
    with pytest.raises(CoreBug, match="swap-out"):
        swap_out(rig.fpu, guest)
    swap_in(rig.fpu, guest)
    for fpu, vcpu in ((rig.fpu, guest), (rig.fpu, second), (other, guest)):
        with pytest.raises(CoreBug, match="swap-in"):
            swap_in(fpu, vcpu)
    swap_in(other, second)
    for fpu, vcpu in ((rig.fpu, second), (other, guest)):
        with pytest.raises(CoreBug, match="swap-out"):
            swap_out(fpu, vcpu)
