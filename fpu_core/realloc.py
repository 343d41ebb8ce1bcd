"""Growing a container: allocate, describe, move, publish, free. The only line that can fail is the first.

One function serves the guest's swap (the founding mail), the host task's own #NM, and mainline's growth when userspace
sets CPUID. An image is never copied as a whole, because the layouts differ: the registers carry the state across, and
where there are none, component after component is moved.

Source: arch/x86/kernel/fpu/xstate.c, fpstate_realloc() and __xfd_enable_feature(); order as the founding mail wants it.
"""

from __future__ import annotations

from dataclasses import dataclass

from fpu_core.alloc import (
    POINT_REALLOC_ALLOC,
    POINT_REALLOC_PERM,
    POINT_TASK_REALLOC_ALLOC,
    POINT_TASK_REALLOC_PERM,
    AllocFailure,
    AllocFailureCause,
)
from fpu_core.config import FpuConfig
from fpu_core.context import fpregs_restore_userregs, running_cpu
from fpu_core.errors import Errno, core_assert
from fpu_core.fpstate import FPSTATE_HEADER_BYTES, Fpstate, fpstate_init_layout, image_offsets, shared_mask
from fpu_core.fpu import Fpu, FpuGuest, StatePerm
from fpu_core.layout import FXSAVE_SIZE_BYTES
from fpu_core.permission import group_perm
from fpu_core.xfeature import XFEATURE_MASK_FPSSE, XFEATURE_MASK_USER_DYNAMIC, for_each_set_bit


@dataclass(frozen=True, slots=True)
class Reallocated:
    """The container grew. Sizes are of the images, in bytes."""

    old_size_bytes: int
    new_size_bytes: int
    xfeatures: int


@dataclass(frozen=True, slots=True)
class ReallocFailed:
    """The container did not grow, and nothing else changed.

    ``cause`` is None where the permission is missing (EPERM); ``size_bytes`` is what the allocation would have taken.
    """

    errno: Errno
    cause: AllocFailureCause | None
    xfeatures: int
    size_bytes: int


def realloc_guest_fpstate(fpu: Fpu, guest: FpuGuest, xfeatures: int) -> Reallocated | ReallocFailed:
    """Grow a guest's container by ``xfeatures`` on behalf of ``fpu``, whose process pays and needs the permission.

    The new container keeps the old one's XFD: who grows a container says afterwards which features that arms.
    """
    old = guest.fpstate
    result = replace_guest_fpstate(fpu, guest, xfeatures)
    if isinstance(result, Reallocated) and old is not None:
        free_replaced(fpu, old)
    return result


def replace_guest_fpstate(fpu: Fpu, guest: FpuGuest, xfeatures: int) -> Reallocated | ReallocFailed:
    """``realloc_guest_fpstate`` without its last step: the caller frees the old container with ``free_replaced``.

    For the swap, which holds the fpregs lock until the user is restored: vfree() may sleep, so it comes after that.
    """
    core_assert(guest.fpstate is not None, "a vCPU without a container cannot grow one")
    perm = group_perm(fpu, guest=True)
    xfeatures &= XFEATURE_MASK_USER_DYNAMIC
    result = _grow(fpu, guest, perm, xfeatures)
    if isinstance(result, Reallocated):
        guest.xfeatures = shared_mask(guest.xfeatures | xfeatures)
        guest.uabi_size = perm.user_state_size
    return result


def realloc_guest_image(fpu: Fpu, guest: FpuGuest, xfeatures: int) -> Reallocated | ReallocFailed:
    """Grow the container of a vCPU that is not loaded, and keep what its image holds.

    No registers carry the state across here, so each component is copied from where the old layout has it to where the
    new one has. fpstate_realloc() itself drops a parked image, for it never meets one that is not empty: in mainline
    growth comes before the first run. A restore that grows may come after one that has loaded registers.
    """
    old = guest.fpstate
    core_assert(old is not None and not old.in_use, "{} is carried over in memory while its registers are live", old)
    result = replace_guest_fpstate(fpu, guest, xfeatures)
    new = guest.fpstate
    if isinstance(result, Reallocated) and old is not None and new is not None:
        carry_image(fpu.host.config, old, new)
        free_replaced(fpu, old)
    return result


def carry_image(config: FpuConfig, old: Fpstate, new: Fpstate) -> None:
    """Move an image, in memory, into a container of another layout that has room for all that is in use.

    The legacy region whole, for MXCSR counts there whatever XSTATE_BV says; then the components XSTATE_BV has.
    """
    new.regs[:FXSAVE_SIZE_BYTES] = old.regs[:FXSAVE_SIZE_BYTES]
    source, target = image_offsets(old, config), image_offsets(new, config)
    for nr in for_each_set_bit(old.xstate_bv & ~XFEATURE_MASK_FPSSE):
        length = config.table.size_bytes(nr)
        new.regs[target[nr] : target[nr] + length] = old.regs[source[nr] : source[nr] + length]
    new.xstate_bv = old.xstate_bv


def realloc_task_fpstate(fpu: Fpu, xfeatures: int) -> Reallocated | ReallocFailed:
    """Grow the container of ``fpu`` itself by dynamic ``xfeatures`` and arm them; the register follows at once."""
    core_assert(fpu.task_fpstate is None, "a host task grows its own container, never while a guest is swapped in")
    old = fpu.fpstate
    result = _grow(fpu, None, group_perm(fpu, guest=False), xfeatures)
    if isinstance(result, Reallocated):
        fpu.fpstate.xfd &= ~xfeatures
        running_cpu(fpu).xfd_update_state(fpu.fpstate.xfd)
        free_replaced(fpu, old)
    return result


def _grow(fpu: Fpu, guest: FpuGuest | None, perm: StatePerm, xfeatures: int) -> Reallocated | ReallocFailed:
    host = fpu.host
    old = guest.fpstate if guest is not None else fpu.fpstate
    assert old is not None
    point = POINT_REALLOC_PERM if guest is not None else POINT_TASK_REALLOC_PERM
    faulty = host.may_grow(point, xfeatures) is not Errno.OK
    if faulty or perm.state_perm & xfeatures != xfeatures:
        known = (old.xfeatures | xfeatures) & host.config.kernel.max_features
        needed = host.config.kernel_size(known) + FPSTATE_HEADER_BYTES
        host.counts.grew("no_permission")
        return ReallocFailed(Errno.EPERM, None, xfeatures, needed)
    point = POINT_REALLOC_ALLOC if guest is not None else POINT_TASK_REALLOC_ALLOC
    # The size is that of everything permitted, not of the request: reading it without the lock is harmless so.
    regs = host.allocator.vzalloc(point, fpu.account, perm.state_size, FPSTATE_HEADER_BYTES)
    if isinstance(regs, AllocFailure):
        if host.tracer is not None:
            host.tracer.vzalloc(regs.size_bytes, None)
        host.counts.grew(regs.cause.name.lower())
        return ReallocFailed(Errno.ENOMEM, regs.cause, xfeatures, regs.size_bytes)
    new = _describe(old, regs, perm, xfeatures)
    fpstate_init_layout(new, host.config)
    host.counts.grew("grown")
    if host.tracer is not None:
        host.tracer.vzalloc(new.allocated_bytes, new)
    host.preempt_point("realloc: allocated, not yet locked")
    _publish(fpu, guest, old, new)
    return Reallocated(old.size, new.size, xfeatures)


def _describe(old: Fpstate, regs: bytearray, perm: StatePerm, xfeatures: int) -> Fpstate:
    """Make the container: what it can hold grows, what it *is* (whose, confidential, its XFD) stays.

    ``in_use`` is copied in ``_publish``, under the lock: until then a preemption may still come in between.
    """
    new = Fpstate(
        regs=regs,
        size=perm.state_size,
        user_size=perm.user_state_size,
        xfeatures=shared_mask(old.xfeatures | xfeatures),
        user_xfeatures=shared_mask(old.user_xfeatures | xfeatures),
        xfd=old.xfd,
    )
    new.is_valloc = True
    new.is_guest = old.is_guest
    new.is_confidential = old.is_confidential
    return new


def _publish(fpu: Fpu, guest: FpuGuest | None, old: Fpstate, new: Fpstate) -> None:
    """Under the fpregs lock: make the old image live if it is the active one and in memory, then flip the pointers."""
    active = fpu.fpstate is old
    if active and fpu.need_load:
        fpregs_restore_userregs(fpu)  # under the old XFD: it is the old image that is loaded
    new.in_use = old.in_use
    if guest is not None:
        guest.fpstate = new
    if active:
        fpu.fpstate = new


def free_replaced(fpu: Fpu, old: Fpstate) -> None:
    """Give a container back that a larger one has replaced; one embedded in a task is not the allocator's."""
    if old.is_valloc:
        fpu.host.allocator.vfree(fpu.account, old.allocated_bytes)
        if fpu.host.tracer is not None:
            fpu.host.tracer.vfree(old)
