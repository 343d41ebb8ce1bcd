"""The swap: what it saves, restores, writes and refuses, counted and in order.

Reference: the founding mail; arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate().
"""

from __future__ import annotations

import copy

import pytest

from fpu_core.alloc import AllocFailureCause
from fpu_core.cpu import Cpu
from fpu_core.errors import CoreBug, Errno
from fpu_core.fpstate import MXCSR_INIT, Fpstate
from fpu_core.fpu import Fpu, fpstate_set_realloc_request
from fpu_core.guest import free_guest_fpstate, sync_guest_vmexit_xfd_state, update_guest_xfd
from fpu_core.realloc import Reallocated, ReallocFailed, realloc_task_fpstate
from fpu_core.sched import kernel_fpu_begin, kernel_fpu_end, switch_fpu_return, switch_to
from fpu_core.swap import swap_in, swap_out
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA as TILE_DATA
from tests.core.rig import Lines, Rig, container, without_compaction
from tests.core.samples import random_bytes


def _grow(rig: Rig) -> Rig:
    """A guest with tile data, swapped in."""
    rig.permit()
    guest = rig.guest()
    swap_in(rig.fpu, guest)
    fpstate_set_realloc_request(guest, TILE_DATA, 0)
    assert swap_out(rig.fpu, guest) == Reallocated(2560, 10752, TILE_DATA)
    swap_in(rig.fpu, guest)
    return rig


# -- the hot path, counted ---------------------------------------------------------------------------------------------


def test_pair_with_nothing_live_moves_nothing() -> None:
    """Enter and leave with every register in its init state: no save, no restore, 0 bytes; XFD goes there and back."""
    rig = Rig.create()
    guest, before = rig.guest(), copy.copy(rig.cpu.counters)
    for _ in range(10):
        swap_in(rig.fpu, guest)
        swap_out(rig.fpu, guest)
    after = rig.cpu.counters
    assert (after.bytes_saved, after.bytes_restored) == (before.bytes_saved, before.bytes_restored) == (0, 0)
    assert (after.saves, after.restores) == (before.saves, before.restores)
    assert after.xfd_writes - before.xfd_writes == 20  # the task's is 0x40000, the guest's is 0


def test_xfd_is_written_only_when_it_differs() -> None:
    """A guest whose XFD is the task's own costs no XFD write at all."""
    rig = Rig.create()
    guest = rig.guest()
    update_guest_xfd(None, guest, TILE_DATA)
    before = rig.cpu.counters.xfd_writes
    swap_in(rig.fpu, guest)
    update_guest_xfd(rig.fpu, guest, TILE_DATA)
    swap_out(rig.fpu, guest)
    assert rig.cpu.counters.xfd_writes == before


def test_nothing_is_saved_when_the_image_is_the_truth() -> None:
    """With need_load set the swap makes no copy: that is the one the mail takes away."""
    rig = Rig.create()
    guest = rig.guest()
    rig.cpu.write_register(1, 0, b"user")
    kernel_fpu_begin(rig.cpu)
    kernel_fpu_end(rig.cpu)
    saves = rig.cpu.counters.saves
    swap_in(rig.fpu, guest)
    assert rig.cpu.counters.saves == saves
    swap_out(rig.fpu, guest)
    assert rig.cpu.read_register(1).startswith(b"user")


def test_live_registers_are_saved_once_each_way() -> None:
    """A user and a guest that both have something: one save and one restore each way, of exactly their bytes."""
    rig = Rig.create()
    guest = rig.guest()
    rig.cpu.write_register(1, 0, b"user")
    swap_in(rig.fpu, guest)
    assert rig.cpu.counters.bytes_saved == 256 + 8, "PKRU is in use as well"
    rig.cpu.write_register(2, 0, b"guest")
    swap_out(rig.fpu, guest)
    assert (rig.cpu.counters.bytes_saved, rig.cpu.counters.bytes_restored) == (264 + 264, 256)
    assert rig.cpu.read_register(1).startswith(b"user")
    assert not any(rig.cpu.read_register(2))


def test_order_of_operations() -> None:
    """Save the old, write XFD, restore the new: XFD comes before the restore, with the mask of the whole kernel."""
    tracer = Lines()
    rig = Rig.create(tracer=tracer)
    guest = rig.guest()
    tracer.lines.clear()
    swap_in(rig.fpu, guest)
    swap_out(rig.fpu, guest)
    assert tracer.lines == [
        "save task:2560 0x20ee7",
        "wrmsr xfd 0x0",
        "restore guest:2560 0x61ce7",
        "save guest:2560 0x21ee7",
        "wrmsr xfd 0x40000",
        "restore task:2560 0x61ce7",
    ]


# -- growth in the swap ------------------------------------------------------------------------------------------------


def test_order_of_growth() -> None:
    """Allocate; save the guest into the new container; restore the user under its own XFD; free the old one last."""
    tracer = Lines()
    rig = Rig.create(tracer=tracer)
    rig.permit()
    guest = rig.guest()
    swap_in(rig.fpu, guest)
    tracer.lines.clear()
    fpstate_set_realloc_request(guest, TILE_DATA, 0)
    swap_out(rig.fpu, guest)
    assert tracer.lines == [
        "vzalloc 10816",
        "save guest:10752 0x61ee7",
        "wrmsr xfd 0x40000",
        "restore task:2560 0x61ce7",
        "vfree 2624",
    ]
    rig.check()


def test_growth_when_the_image_is_the_truth() -> None:
    """A preempted guest is loaded from its old container, under the old XFD, before it is saved into the new one."""
    tracer = Lines()
    rig = Rig.create(tracer=tracer)
    rig.permit()
    guest = rig.guest()
    swap_in(rig.fpu, guest)
    update_guest_xfd(rig.fpu, guest, TILE_DATA)
    rig.cpu.write_register(7, 100, b"guest")
    switch_to(rig.cpus[1], rig.fpu)
    tracer.lines.clear()
    fpstate_set_realloc_request(guest, TILE_DATA, 0)
    swap_out(rig.fpu, guest)
    assert tracer.lines == [
        "vzalloc 10816",
        "restore guest:2560 0x61ce7",
        "save guest:10752 0x61ee7",
        "restore task:2560 0x61ce7",
        "vfree 2624",
    ]
    assert container(guest).xfd == 0
    swap_in(rig.fpu, guest)
    assert rig.cpu.read_register(7)[100:105] == b"guest"
    rig.check()


def test_growth_keeps_every_byte_of_both_sides() -> None:
    """Layouts differ, so no image is copied; the registers carry the state across."""
    rig = Rig.create()
    rig.permit()
    guest = rig.guest()
    user = {nr: random_bytes(nr, rig.config.table.size_bytes(nr)) for nr in (1, 2, 5, 6, 7, 17)}
    theirs = {nr: random_bytes(100 + nr, rig.config.table.size_bytes(nr)) for nr in user}
    _load(rig.cpu, user)
    swap_in(rig.fpu, guest)
    _load(rig.cpu, theirs)
    fpstate_set_realloc_request(guest, TILE_DATA, 0)
    swap_out(rig.fpu, guest)
    assert _read(rig.cpu, user) == user
    swap_in(rig.fpu, guest)
    assert _read(rig.cpu, theirs) == theirs
    rig.check()


def _load(cpu: Cpu, registers: dict[int, bytes]) -> None:
    for nr, raw in registers.items():
        assert cpu.write_register(nr, 0, raw) is None


def _read(cpu: Cpu, registers: dict[int, bytes]) -> dict[int, bytes]:
    return {nr: cpu.read_register(nr) for nr in registers}


@pytest.mark.parametrize("why", ["no memory", "quota of the VM", "quota of the host", "no permission"])
def test_failed_growth_leaves_what_a_plain_swap_leaves(why: str) -> None:
    """The swap goes on as if nothing had been requested and returns the errno; the request is gone."""
    rig = Rig.create()
    if why != "no permission":
        rig.permit()
    guest = rig.guest()
    rig.cpu.write_register(1, 0, b"user")
    swap_in(rig.fpu, guest)
    rig.cpu.write_register(1, 0, b"guest")
    match why:
        case "no memory":
            rig.fail_allocations()
        case "quota of the VM":
            rig.fpu.account.set_limit(rig.fpu.account.used_bytes + 10_815)
        case "quota of the host":
            rig.host.allocator.host.set_limit(rig.fpu.account.used_bytes + 10_815)
    plain = copy.deepcopy(rig, {id(rig.config): rig.config})
    swap_out(plain.fpu, plain.guests[0])
    fpstate_set_realloc_request(guest, TILE_DATA, 0)
    result = swap_out(rig.fpu, guest)
    assert isinstance(result, ReallocFailed)
    assert result.errno is (Errno.EPERM if why == "no permission" else Errno.ENOMEM)
    quota = AllocFailureCause.QUOTA if why.startswith("quota") else None
    assert result.cause is (AllocFailureCause.NO_MEMORY if why == "no memory" else quota)
    assert result.size_bytes == 10_816
    assert guest.realloc_request is None
    assert _all(rig) == _all(plain)
    rig.check()


def _all(rig: Rig) -> tuple[object, ...]:
    cpu, guest = rig.cpu, rig.guests[0]
    return (
        (cpu.xfd, cpu.xfd_cache, cpu.xfd_err, cpu.xinuse, cpu.mxcsr, cpu.observable()),
        (rig.fpu.need_load, rig.fpu.last_cpu, cpu.owner is rig.fpu, rig.fpu.task_fpstate is None),
        (rig.fpu.fpstate.image(), rig.fpu.fpstate.xfd, rig.fpu.account.used_bytes),
        (container(guest).image(), container(guest).xfd, container(guest).size, container(guest).in_use),
        (guest.xfeatures, guest.uabi_size, guest.xfd_err),
    )


def test_requests_accumulate() -> None:
    """Two requests before the swap are one growth; the XFD of the last one counts."""
    rig = Rig.create()
    guest = rig.guest()
    fpstate_set_realloc_request(guest, 1 << 18, 0)
    fpstate_set_realloc_request(guest, 1 << 19, 5)
    assert guest.realloc_request is not None
    assert (guest.realloc_request.xfeatures, guest.realloc_request.xfd) == (3 << 18, 5)


def test_sizes_after_growth() -> None:
    """Size and uABI size come from the permission record: 10,752 and 11,008 bytes."""
    rig = _grow(Rig.create())
    guest, fpstate = rig.guests[0], container(rig.guests[0])
    assert (fpstate.size, fpstate.user_size, guest.uabi_size) == (10752, 11008, 11008)
    assert fpstate.xfeatures == guest.xfeatures == rig.config.guest_default_features | TILE_DATA
    assert fpstate.user_xfeatures == rig.config.user.max_features
    assert fpstate.is_valloc
    assert fpstate.is_guest
    assert fpstate.in_use


def test_guest_large_user_small() -> None:
    """A guest with tiles in a VMM without: the user's container stays 2,560 bytes, and no tile byte reaches it."""
    rig = _grow(Rig.create())
    guest = rig.guests[0]
    tiles = random_bytes(1, 8192)
    rig.cpu.write_register(18, 0, tiles)
    swap_out(rig.fpu, guest)
    assert rig.fpu.fpstate.size == 2560
    assert not rig.cpu.xinuse & TILE_DATA
    assert rig.cpu.xfd == TILE_DATA
    swap_in(rig.fpu, guest)
    assert rig.cpu.read_register(18) == tiles
    rig.check()


def test_guest_small_user_large() -> None:
    """A VMM that uses tiles itself with a guest that has none: the guest's container stays 2,560 bytes."""
    rig = Rig.create()
    rig.permit(guest=False)
    guest = rig.guest()
    assert isinstance(realloc_task_fpstate(rig.fpu, TILE_DATA), Reallocated)
    tiles = random_bytes(2, 8192)
    rig.cpu.write_register(18, 0, tiles)
    swap_in(rig.fpu, guest)
    assert container(guest).size == 2560
    assert not rig.cpu.xinuse & TILE_DATA
    swap_out(rig.fpu, guest)
    assert rig.cpu.read_register(18) == tiles
    rig.check()


# -- confidential ------------------------------------------------------------------------------------------------------


def test_confidential_guest_is_neither_saved_nor_restored() -> None:
    """Its registers are the firmware's: the swap writes XFD and touches no register; growth copies the flag."""
    tracer = Lines()
    rig = Rig.create(tracer=tracer)
    rig.permit()
    guest = rig.guest()
    container(guest).is_confidential = True
    tracer.lines.clear()
    swap_in(rig.fpu, guest)
    fpstate_set_realloc_request(guest, TILE_DATA, 0)
    swap_out(rig.fpu, guest)
    assert tracer.lines == [
        "save task:2560 0x20ee7",
        "wrmsr xfd 0x0",
        "vzalloc 10816",
        "wrmsr xfd 0x40000",
        "restore task:2560 0x61ce7",
        "vfree 2624",
    ]
    assert container(guest).is_confidential
    assert container(guest).size == 10752
    rig.check()


# -- XFD of a guest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["outside", "preempted", "live"])
def test_xfd_write_and_the_image(where: str) -> None:
    """An image that will be restored never has a bit that XFD forbids to load (bugs B1 and B46)."""
    rig = _grow(Rig.create())
    guest = rig.guests[0]
    rig.cpu.write_register(18, 0, b"tile")
    if where == "outside":
        swap_out(rig.fpu, guest)
        update_guest_xfd(None, guest, TILE_DATA)
        assert not rig.fpu.need_load, "the gap of B46: the flag is clear, and the vCPU is not loaded"
    else:
        if where == "preempted":
            switch_to(rig.cpu, None)
            switch_to(rig.cpus[0], rig.fpu)
        update_guest_xfd(rig.fpu, guest, TILE_DATA)
    assert (where == "live") or not container(guest).xstate_bv & TILE_DATA
    rig.check()
    if where == "outside":
        swap_in(rig.fpu, guest)
    switch_to(rig.cpus[1], rig.fpu)
    switch_fpu_return(rig.fpu)
    assert rig.cpu.xfd == TILE_DATA
    assert not rig.cpu.xinuse & TILE_DATA
    rig.check()


def test_xfd_write_while_another_task_owns_the_registers() -> None:
    """A preempted thread's XFD write reaches the register; the task whose registers are there must not go on under it.

    The lazy restore looks at owner and last CPU only, so both lose their claim.
    """
    rig = Rig.create()
    guest, other = rig.guest(), Fpu(rig.host, "other", account=rig.fpu.account)
    other.need_load = True
    swap_in(rig.fpu, guest)
    switch_to(rig.cpus[0], other)
    switch_fpu_return(other)
    switch_to(rig.cpus[0], rig.fpu)
    update_guest_xfd(rig.fpu, guest, 0)
    switch_to(rig.cpus[0], other)
    switch_fpu_return(other)
    assert rig.cpus[0].xfd == other.fpstate.xfd == TILE_DATA


@pytest.mark.parametrize(("home", "away"), [(0, 1), (1, 0)])
def test_xfd_write_far_from_home(home: int, away: int) -> None:
    """Preempted at home, XFD written on another CPU, back at home: its old registers there are not valid any more."""
    rig = Rig.create()
    guest, other = rig.guest(), Fpu(rig.host, "other", account=rig.fpu.account)
    other.need_load = True
    switch_to(rig.cpus[home], rig.fpu)
    swap_in(rig.fpu, guest)
    switch_to(rig.cpus[away], rig.fpu)
    update_guest_xfd(rig.fpu, guest, TILE_DATA)
    switch_to(rig.cpus[home], rig.fpu)
    switch_fpu_return(rig.fpu)
    assert rig.cpus[home].xfd == container(guest).xfd == TILE_DATA
    rig.check()


def test_vmexit_sync() -> None:
    """With XFD passed through, the register is the truth at a VM exit, and container and cache follow it."""
    rig = _grow(Rig.create())
    writes = rig.cpu.counters.xfd_writes
    rig.cpu.xfd = TILE_DATA
    sync_guest_vmexit_xfd_state(rig.cpu)
    assert container(rig.guests[0]).xfd == rig.cpu.xfd_cache == TILE_DATA
    assert rig.cpu.counters.xfd_writes == writes
    rig.check()


# -- without the compacted format --------------------------------------------------------------------------------------


@pytest.mark.parametrize("xsave", [pytest.param(True, id="XSAVE"), pytest.param(False, id="FXSAVE")])
def test_mxcsr_alone_survives_without_compaction(xsave: bool) -> None:
    """In the standard format MXCSR is kept outside XSTATE_BV, so an image that looks empty may have to be loaded."""
    rig = Rig.create(without_compaction(xsave=xsave))
    guest = rig.guest()
    swap_in(rig.fpu, guest)
    rig.cpu.set_mxcsr(0x1FA0)
    swap_out(rig.fpu, guest)
    assert rig.cpu.mxcsr == MXCSR_INIT
    swap_in(rig.fpu, guest)
    assert rig.cpu.mxcsr == 0x1FA0
    rig.check()


# -- our bugs ----------------------------------------------------------------------------------------------------------


def test_what_a_swap_refuses_as_our_bug() -> None:
    """Enter twice, also by two threads; leave without enter; a request pending at entry; a thread off the CPU; free."""
    rig = Rig.create()
    guest, other = rig.guest(), rig.guest()
    with pytest.raises(CoreBug, match="swap-out"):
        swap_out(rig.fpu, guest)
    fpstate_set_realloc_request(guest, TILE_DATA, 0)
    with pytest.raises(CoreBug, match="swap-in"):
        swap_in(rig.fpu, guest)
    guest.realloc_request = None
    swap_in(rig.fpu, guest)
    for again in (guest, other):
        with pytest.raises(CoreBug, match="swap-in"):
            swap_in(rig.fpu, again)
    with pytest.raises(CoreBug, match="swap-out"):
        swap_out(rig.fpu, other)
    with pytest.raises(CoreBug, match="free of"):
        free_guest_fpstate(rig.fpu, guest)
    thread = Fpu(rig.host, "thread", account=rig.fpu.account, leader=rig.fpu)
    thread.need_load = True
    for cpu in (None, rig.cpus[1]):
        if cpu is not None:
            switch_to(cpu, thread)
        for vcpu in (guest, other) if cpu is None else (guest,):
            with pytest.raises(CoreBug, match="swap-in"):
                swap_in(thread, vcpu)
    switch_to(rig.cpu, None)
    with pytest.raises(CoreBug, match="swap-out"):
        swap_out(rig.fpu, guest)
    with pytest.raises(CoreBug, match="scheduled out"):
        update_guest_xfd(rig.fpu, guest, 0)


def test_restore_that_faults_is_our_bug() -> None:
    """An image that holds what its XFD forbids would be #NM in the kernel."""
    rig = _grow(Rig.create())
    guest = rig.guests[0]
    rig.cpu.write_register(18, 0, b"tile")
    swap_out(rig.fpu, guest)
    _break(container(guest))
    with pytest.raises(CoreBug, match="raised NM in the kernel"):
        swap_in(rig.fpu, guest)


def _break(fpstate: Fpstate) -> None:
    fpstate.xfd = TILE_DATA
