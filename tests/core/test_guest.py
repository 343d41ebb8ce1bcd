"""Guest containers outside the swap: alloc, free, mainline's enable.

Reference: arch/x86/kernel/fpu/core.c, fpu_alloc_guest_fpstate(); xstate.c, __xfd_enable_feature().
"""

from __future__ import annotations

import pytest

from fpu_core.alloc import AllocFailure, AllocFailureCause
from fpu_core.errors import Errno
from fpu_core.fpstate import MXCSR_INIT
from fpu_core.fpu import FPU_GUEST_PERM_LOCKED, KVM_XSAVE_BYTES, Fpu, FpuGuest
from fpu_core.guest import alloc_guest_fpstate, enable_guest_xfd_features, free_guest_fpstate, update_guest_xfd
from fpu_core.layout import MXCSR_OFFSET
from fpu_core.permission import request_permission
from fpu_core.rules import KERNEL_6_12
from fpu_core.sched import switch_to
from fpu_core.swap import swap_in, swap_out
from fpu_core.x87 import FCW_INIT
from fpu_core.xfeature import XCOMP_BV_COMPACTED_FORMAT, XFEATURE_MASK_YMM
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA as TILE_DATA
from tests.core.rig import Lines, Rig, container


def test_alloc() -> None:
    """A default container: 2,560 bytes, XFD 0, everything in its init state, and a loadable header."""
    rig = Rig.create()
    fpstate = container(guest := rig.guest())
    assert (fpstate.size, fpstate.user_size, fpstate.xfd) == (2560, 2816, 0)
    assert fpstate.xcomp_bv == fpstate.xfeatures | XCOMP_BV_COMPACTED_FORMAT
    assert fpstate.xstate_bv == 0
    assert fpstate.regs[0:2] == FCW_INIT.to_bytes(2, "little")
    assert fpstate.regs[MXCSR_OFFSET : MXCSR_OFFSET + 4] == MXCSR_INIT.to_bytes(4, "little")
    assert (guest.xfeatures, guest.uabi_size) == (fpstate.xfeatures, KVM_XSAVE_BYTES)
    assert rig.fpu.account.used_bytes == rig.host.allocator.host.used_bytes == 2624
    rig.check()


def test_alloc_locks_the_permission() -> None:
    """The first vCPU locks the process's guest permission, for good."""
    rig = Rig.create()
    rig.guest()
    assert rig.fpu.guest_perm.state_perm & FPU_GUEST_PERM_LOCKED
    assert request_permission(rig.fpu, 18, guest=True) is Errno.EBUSY
    assert request_permission(rig.fpu, 18, guest=False) is Errno.OK


def test_alloc_failure_leaves_nothing_behind() -> None:
    """No memory: no container, nothing charged, and the permission is not locked."""
    rig = Rig.create()
    rig.fail_allocations()
    guest = FpuGuest()
    assert alloc_guest_fpstate(rig.fpu, guest) == AllocFailure(AllocFailureCause.NO_MEMORY, 2624, "vm")
    assert guest.fpstate is None
    assert rig.fpu.account.used_bytes == 0
    assert rig.fpu.account.failures == 1
    assert not rig.fpu.guest_perm.state_perm & FPU_GUEST_PERM_LOCKED


def test_free_gives_everything_back_and_twice_is_nothing() -> None:
    """A container that is not in use goes back to the account; there is nothing to free after that."""
    rig = Rig.create()
    guest = rig.guest()
    free_guest_fpstate(rig.fpu, guest)
    free_guest_fpstate(rig.fpu, guest)
    assert guest.fpstate is None
    assert rig.fpu.account.used_bytes == rig.host.allocator.host.used_bytes == 0


def test_created_on_one_thread_and_run_on_another() -> None:
    """Creation only allocates; whoever runs the vCPU attaches it, and another thread may do so next time."""
    rig = Rig.create()
    guest = rig.guest()
    other = Fpu(rig.host, "other", account=rig.fpu.account, leader=rig.fpu)
    other.need_load = True
    switch_to(rig.cpus[1], other)
    swap_in(other, guest)
    rig.cpus[1].write_register(2, 0, b"guest")
    swap_out(other, guest)
    swap_in(rig.fpu, guest)
    assert rig.cpu.read_register(2).startswith(b"guest")


# -- mainline's enable -------------------------------------------------------------------------------------------------


def test_enable_without_permission_is_eperm() -> None:
    """No permission of the process: EPERM, and nothing is allocated."""
    rig = Rig.create()
    guest = rig.guest()
    assert enable_guest_xfd_features(rig.fpu, guest, TILE_DATA) is Errno.EPERM
    assert container(guest).size == 2560


def test_enable_without_memory_is_efault() -> None:
    """__xfd_enable_feature() never lets ENOMEM out: a failed allocation is EFAULT."""
    rig = Rig.create()
    rig.permit()
    guest = rig.guest()
    rig.fail_allocations()
    assert enable_guest_xfd_features(rig.fpu, guest, TILE_DATA) is Errno.EFAULT
    assert container(guest).size == 2560
    rig.check()


def test_enable_grows_and_is_idempotent() -> None:
    """The container grows at once; features that are there already are 0 without an allocation."""
    rig = Rig.create()
    rig.permit()
    guest = rig.guest()
    assert enable_guest_xfd_features(rig.fpu, guest, TILE_DATA) is Errno.OK
    assert (container(guest).size, guest.uabi_size, container(guest).xfd) == (10752, 11008, 0)
    allocations = rig.host.allocator.host.allocations
    assert enable_guest_xfd_features(rig.fpu, guest, TILE_DATA | XFEATURE_MASK_YMM) is Errno.OK
    assert rig.host.allocator.host.allocations == allocations
    rig.check()


def test_enable_of_nothing_dynamic_says_so() -> None:
    """A request without a dynamic feature is 0; the kernel prints an error."""
    tracer = Lines()
    rig = Rig.create(tracer=tracer)
    guest = rig.guest()
    tracer.lines.clear()
    assert enable_guest_xfd_features(rig.fpu, guest, 1 << 19) is Errno.OK
    assert len(tracer.lines) == 1
    assert container(guest).size == 2560


def test_enable_copies_what_the_container_is() -> None:
    """Growing keeps whose it is and whether it is confidential; its memory content is dropped, as in the kernel."""
    rig = Rig.create()
    rig.permit()
    guest = rig.guest()
    old = container(guest)
    old.is_confidential = True
    assert enable_guest_xfd_features(rig.fpu, guest, TILE_DATA) is Errno.OK
    new = container(guest)
    assert new is not old
    assert (new.is_confidential, new.is_guest, new.is_valloc, new.in_use) == (True, True, True, False)
    assert new.xstate_bv == 0
    rig.check()


def test_enable_while_in_use_keeps_the_registers() -> None:
    """A container that is active stays active, and what is live stays live."""
    rig = Rig.create()
    rig.permit()
    guest = rig.guest()
    swap_in(rig.fpu, guest)
    rig.cpu.write_register(2, 0, b"guest")
    assert enable_guest_xfd_features(rig.fpu, guest, TILE_DATA) is Errno.OK
    assert rig.fpu.fpstate is container(guest)
    assert container(guest).in_use
    rig.check()
    swap_out(rig.fpu, guest)
    swap_in(rig.fpu, guest)
    assert rig.cpu.read_register(2).startswith(b"guest")


@pytest.mark.parametrize("active", [False, True], ids=["outside", "swapped in"])
def test_enable_disarms_what_it_enables(active: bool) -> None:
    """A guest that had armed XFD finds the feature enabled: its bit goes, in the container and in the register."""
    rig = Rig.create()
    rig.permit()
    guest = rig.guest()
    update_guest_xfd(None, guest, TILE_DATA)
    if active:
        swap_in(rig.fpu, guest)
    assert enable_guest_xfd_features(rig.fpu, guest, TILE_DATA) is Errno.OK
    assert container(guest).xfd == 0
    assert (rig.cpu.xfd, rig.cpu.xfd_cache) == ((0, 0) if active else (TILE_DATA, TILE_DATA))
    rig.check()


@pytest.mark.parametrize("permitted", [False, True])
def test_old_kernels_keep_a_copy_of_the_permission(permitted: bool) -> None:
    """Under 6.12 rules the vCPU has a copy, taken before the lock bit is set."""
    rig = Rig.create(rules=KERNEL_6_12)
    if permitted:
        rig.permit()
    guest = rig.guest()
    assert bool(guest.perm & TILE_DATA) == permitted
    assert not guest.perm & FPU_GUEST_PERM_LOCKED
