"""The life of a guest container outside the swap: alloc, shrink, free, XFD writes, the VM exit sync, mainline's enable.

Source: arch/x86/kernel/fpu/core.c, fpu_alloc_guest_fpstate(), fpu_free_guest_fpstate(), fpu_update_guest_xfd(),
fpu_sync_guest_vmexit_xfd_state(), fpu_enable_guest_xfd_features(); xstate.c, __xfd_enable_feature().
"""

from __future__ import annotations

from fpu_core.alloc import POINT_GUEST_ALLOC, AllocFailure
from fpu_core.config import FpuConfig
from fpu_core.context import running_cpu
from fpu_core.cpu import Cpu
from fpu_core.errors import CoreBug, Errno, core_assert
from fpu_core.fpstate import FPSTATE_HEADER_BYTES, Fpstate, guest_fpstate
from fpu_core.fpu import KVM_XSAVE_BYTES, Fpu, FpuGuest
from fpu_core.permission import group_perm, lock_guest_perm
from fpu_core.realloc import ReallocFailed, carry_image, realloc_guest_fpstate
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC


def alloc_guest_fpstate(fpu: Fpu, guest: FpuGuest) -> AllocFailure | None:
    """Give a new vCPU its default container and lock the process's guest permissions; None on success.

    The thread that creates a vCPU need not be the one that runs it, so nothing is attached to ``fpu``: it only says
    which process pays. On failure nothing has changed.
    """
    host = fpu.host
    size = host.config.guest_default_size
    regs = host.allocator.vzalloc(POINT_GUEST_ALLOC, fpu.account, size, FPSTATE_HEADER_BYTES)
    if isinstance(regs, AllocFailure):
        if host.tracer is not None:
            host.tracer.vzalloc(regs.size_bytes, None)
        return regs
    guest.fpstate = guest_fpstate(host.config, regs)
    guest.xfeatures = guest.fpstate.xfeatures
    guest.uabi_size = _default_uabi_size(host.config)
    if host.config.rules.guest_keeps_perm:
        guest.perm = group_perm(fpu, guest=True).state_perm
    if host.tracer is not None:
        host.tracer.vzalloc(guest.fpstate.allocated_bytes, guest.fpstate)
    lock_guest_perm(fpu)
    return None


def _default_uabi_size(config: FpuConfig) -> int:
    return max(KVM_XSAVE_BYTES, config.user.default_size)


def shrink_guest_fpstate(fpu: Fpu, guest: FpuGuest) -> int:
    """Take a container that is not swapped in back to the default size; returns the bytes given back.

    It becomes what it would be had it never grown: features, sizes and the user format. XFD and every component that is
    in use stay as they are, so none of those that go may be in use. In place: nothing is allocated, so nothing fails,
    which is what a way out of a shortage has to be. The kernel has no such path; vrealloc() is how it shrinks others.
    """
    host, old = fpu.host, guest_container(guest)
    default = host.config.guest_default_features
    core_assert(old.is_valloc and old.is_guest and not old.in_use, f"shrink of {old}")
    core_assert(not old.is_confidential and not old.xstate_bv & ~default, f"shrink of {old} loses {old.xstate_bv:#x}")
    new = guest_fpstate(host.config, bytearray(host.config.guest_default_size))
    new.xfd = old.xfd
    carry_image(host.config, old, new)
    guest.fpstate = new
    guest.xfeatures = new.xfeatures
    guest.uabi_size = _default_uabi_size(host.config)
    host.counts.shrinks += 1
    host.allocator.shrink(fpu.account, old.allocated_bytes, new.allocated_bytes)
    if host.tracer is not None:
        host.tracer.shrink(old, new)
    return old.allocated_bytes - new.allocated_bytes


def free_guest_fpstate(fpu: Fpu, guest: FpuGuest) -> None:
    """Give the container back; nothing to do where there is none.

    Freeing one that is swapped in is refused as our bug. The kernel warns and leaks it.
    """
    fpstate = guest.fpstate
    if fpstate is None:
        return
    core_assert(fpstate.is_valloc and fpstate.is_guest and not fpstate.in_use, f"free of {fpstate}")
    guest.fpstate = None
    fpu.host.allocator.vfree(fpu.account, fpstate.allocated_bytes)
    if fpu.host.tracer is not None:
        fpu.host.tracer.vfree(fpstate)


def guest_container(guest: FpuGuest) -> Fpstate:
    """Return the container of a vCPU that has one."""
    if guest.fpstate is None:
        raise CoreBug("a vCPU without a container")
    return guest.fpstate


def update_guest_xfd(fpu: Fpu | None, guest: FpuGuest, xfd: int) -> None:
    """A legal XFD write, by the guest or for it. ``fpu`` is the task that runs the vCPU, None while nobody does.

    XSTATE_BV of the image is cleared where the new XFD is set unless the guest's registers are live: an image that will
    be restored must never hold what XFD forbids to load. Mainline clears under TIF_NEED_FPU_LOAD only and so misses the
    vCPU that is not loaded while its thread's flag is clear (bug B46).
    """
    fpstate = guest_container(guest)
    live = fpstate.in_use and fpu is not None and not fpu.need_load
    if not live:
        fpstate.xstate_bv &= ~xfd
    fpstate.xfd = xfd
    if fpstate.in_use:
        core_assert(fpu is not None and fpu.fpstate is fpstate, "{} is in use, but not by {}", fpstate, fpu)
        assert fpu is not None
        _write_guest_xfd(fpu, running_cpu(fpu), xfd)


def _write_guest_xfd(fpu: Fpu, cpu: Cpu, xfd: int) -> None:
    """XFD reaches the register. With the guest's registers in memory, no CPU's are valid for it, nor these for anyone.

    XFD is part of what makes registers somebody's, and the lazy restore looks at owner and last CPU only: without this,
    a task whose registers are still on this CPU would go on under the guest's XFD, and the guest, back on the CPU it
    came from, under its own old one.
    """
    if fpu.need_load:
        fpu.last_cpu = -1
        cpu.owner = None
    cpu.xfd_update_state(xfd)


def sync_guest_vmexit_xfd_state(cpu: Cpu) -> None:
    """After a VM exit with XFD passed through: what the guest left in the register becomes the truth.

    Must come before interrupts are enabled; until then the cache is out of date on purpose.
    """
    core_assert(cpu.current is not None, "cpu {} takes a VM exit with no task", cpu.nr)
    assert cpu.current is not None
    cpu.current.fpstate.xfd = cpu.xfd
    cpu.xfd_cache = cpu.xfd


def enable_guest_xfd_features(fpu: Fpu, guest: FpuGuest, xfeatures: int) -> Errno:
    """Mainline's growth, at KVM_SET_CPUID2: 0, EPERM without permission, EFAULT where the allocation failed."""
    xfeatures &= ~guest.xfeatures
    if not xfeatures:
        return Errno.OK
    dynamic = xfeatures & XFEATURE_MASK_USER_DYNAMIC
    if not dynamic:
        if fpu.host.tracer is not None:
            fpu.host.tracer.pr_err("x86/fpu: no dynamic feature in the request")
        return Errno.OK
    result = realloc_guest_fpstate(fpu, guest, dynamic)
    if isinstance(result, ReallocFailed):
        # __xfd_enable_feature() never lets ENOMEM out.
        return Errno.EPERM if result.errno is Errno.EPERM else Errno.EFAULT
    fpstate = guest_container(guest)
    fpstate.xfd &= ~dynamic
    if fpu.fpstate is fpstate:
        running_cpu(fpu).xfd_update_state(fpstate.xfd)
    return Errno.OK
