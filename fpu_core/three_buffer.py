"""The swap that the founding mail replaces: KVM keeps two buffers beside the thread's own image, and copies.

    H  swap_in     the user's state into user_fpu: by XSAVE, or by memcpy of the thread's image under TIF_NEED_FPU_LOAD;
                   then XRSTOR of guest_fpu
    G    ...       a preemption saves the *guest* into the thread's own image, which is the scratch of the whole scheme
    H  swap_out    the same the other way round: into guest_fpu, by XSAVE or by memcpy; then XRSTOR of user_fpu

The thread's pointer never moves, so everything else must: the bytes, and with them what they mean (features, XFD). So
XFD exists in the register, in the thread's image and in both buffers, and each swap copies it twice. All three images
have the largest size, because each may have to take what another holds.

While the guest is swapped in, the thread's image is the guest's container (``guest.fpstate``, in use) and ``user_fpu``
is where the user is parked (``fpu.task_fpstate``); so every invariant of the core means here what it means elsewhere.

Source: arch/x86/kvm/x86.c of 5.15, kvm_save_current_fpu(), kvm_load_guest_fpu(), kvm_put_guest_fpu().
"""

from __future__ import annotations

from fpu_core.alloc import POINT_GUEST_ALLOC, POINT_TASK_REALLOC_ALLOC, AllocFailure
from fpu_core.context import fpregs_mark_activate, restore_fpregs_from_fpstate, running_cpu, save_into
from fpu_core.cpu import Cpu
from fpu_core.errors import CoreBug, core_assert
from fpu_core.fpstate import FPSTATE_HEADER_BYTES, Fpstate, fpstate_init_layout, guest_fpstate, task_fpstate
from fpu_core.fpu import KVM_XSAVE_BYTES, Fpu, FpuGuest, KvmBuffers
from fpu_core.permission import group_perm, lock_guest_perm
from fpu_core.realloc import free_replaced
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC


def alloc_kvm_buffers(fpu: Fpu, guest: FpuGuest) -> AllocFailure | None:
    """Give a new vCPU its two buffers, both of the largest size, and lock guest permissions; None on success.

    ``guest_fpu`` holds every feature the process may give a guest. On failure nothing has changed.
    """
    config = fpu.host.config
    user_fpu = _alloc_largest(fpu, POINT_GUEST_ALLOC, task_fpstate(config))
    if isinstance(user_fpu, AllocFailure):
        return user_fpu
    like = guest_fpstate(config, bytearray(config.guest_default_size))
    guest_fpu = _alloc_largest(fpu, POINT_GUEST_ALLOC, like)
    if isinstance(guest_fpu, AllocFailure):
        _vfree(fpu, user_fpu)
        return guest_fpu
    perm = group_perm(fpu, guest=True)
    permitted = perm.state_perm & XFEATURE_MASK_USER_DYNAMIC
    guest_fpu.xfeatures |= permitted
    guest_fpu.user_xfeatures |= permitted
    guest_fpu.user_size = perm.user_state_size
    fpstate_init_layout(guest_fpu, config)
    guest.buffers = KvmBuffers(user_fpu, guest_fpu)
    guest.fpstate = guest_fpu
    guest.xfeatures = guest_fpu.xfeatures
    guest.uabi_size = max(KVM_XSAVE_BYTES, perm.user_state_size)
    lock_guest_perm(fpu)
    return None


def free_kvm_buffers(fpu: Fpu, guest: FpuGuest) -> None:
    """Give both buffers of a vCPU back, which is outside the guest."""
    buffers = _buffers(guest)
    core_assert(guest.fpstate is buffers.guest_fpu, f"free of {guest}, which is swapped in")
    guest.fpstate = guest.buffers = None
    _vfree(fpu, buffers.user_fpu)
    _vfree(fpu, buffers.guest_fpu)


def swap_in(fpu: Fpu, guest: FpuGuest) -> AllocFailure | None:
    """KVM_RUN enters on ``fpu``, which must be running. Not None: its own image could not become large enough."""
    buffers = _buffers(guest)
    if guest.fpstate is not buffers.guest_fpu or fpu.task_fpstate is not None:
        raise CoreBug(f"swap-in of {guest} by {fpu}")
    failure = _make_own_image_largest(fpu)
    if failure is not None:
        return failure
    own, cpu = fpu.fpstate, running_cpu(fpu)
    _save_current(cpu, fpu, buffers.user_fpu)
    _describe(cpu, own, buffers.guest_fpu)
    own.in_use = True
    fpu.task_fpstate = buffers.user_fpu
    guest.fpstate = own
    _load(cpu, fpu, buffers.guest_fpu)
    return None


def swap_out(fpu: Fpu, guest: FpuGuest) -> None:
    """KVM_RUN leaves. The thread's image describes the user again; the registers, not it, hold the user's state."""
    buffers = _buffers(guest)
    own, cpu = fpu.fpstate, running_cpu(fpu)
    if guest.fpstate is not own or fpu.task_fpstate is not buffers.user_fpu or not own.in_use:
        raise CoreBug(f"swap-out of {guest} by {fpu}")
    _save_current(cpu, fpu, buffers.guest_fpu)
    guest.fpstate = buffers.guest_fpu
    own.in_use = False
    _describe(cpu, own, buffers.user_fpu)
    fpu.task_fpstate = None
    _load(cpu, fpu, buffers.user_fpu)


def abandon_swap(fpu: Fpu, guest: FpuGuest) -> None:
    """After a bug of ours, whatever was half done: the thread has its user's state again; ``guest_fpu`` stays."""
    buffers = _buffers(guest)
    own, cpu = fpu.fpstate, fpu.cpu
    guest.fpstate = buffers.guest_fpu
    own.in_use = False
    if fpu.task_fpstate is not None:
        fpu.task_fpstate = None
        _describe(cpu, own, buffers.user_fpu)
        _copy_image(cpu, own, buffers.user_fpu)
        fpu.need_load = True
        fpu.last_cpu = -1
    if cpu is not None:
        cpu.xfd_err = 0
        if cpu.owner is fpu and fpu.need_load:
            cpu.owner = None


def _buffers(guest: FpuGuest) -> KvmBuffers:
    if guest.buffers is None:
        raise CoreBug(f"{guest} has no buffers")
    return guest.buffers


# -- moving ------------------------------------------------------------------------------------------------------------


def _save_current(cpu: Cpu, fpu: Fpu, into: Fpstate) -> None:
    """Save what the thread has now into a buffer. Source: kvm_save_current_fpu()."""
    own = fpu.fpstate
    _describe(cpu, into, own)
    if own.is_confidential:
        return
    if fpu.need_load:
        _copy_image(cpu, into, own)
    else:
        save_into(cpu, fpu, into)


def _load(cpu: Cpu, fpu: Fpu, buffer: Fpstate) -> None:
    """The buffer's state into the registers, which then are the thread's; a confidential guest's are the firmware's."""
    if buffer.is_confidential:
        cpu.xfd_update_state(buffer.xfd)
    else:
        restore_fpregs_from_fpstate(cpu, fpu, buffer)
    fpregs_mark_activate(fpu, cpu)


def _describe(cpu: Cpu | None, to: Fpstate, of: Fpstate) -> None:
    """Copy what a container says about its image, XFD among it; the image itself then says nothing is in use."""
    to.xfeatures, to.user_xfeatures, to.user_size = of.xfeatures, of.user_xfeatures, of.user_size
    to.is_guest, to.is_confidential, to.xfd = of.is_guest, of.is_confidential, of.xfd
    to.xstate_bv, to.xcomp_bv = 0, of.xcomp_bv
    if cpu is not None:
        cpu.counters.xfd_copies += 1


def _copy_image(cpu: Cpu | None, to: Fpstate, of: Fpstate) -> None:
    """The memcpy: a whole image of the largest size, whatever is in it."""
    to.regs[: of.size] = of.regs
    to.xstate_bv, to.xcomp_bv = of.xstate_bv, of.xcomp_bv
    if cpu is not None:
        cpu.counters.bytes_copied += of.size
        if cpu.tracer is not None:
            cpu.tracer.copy(to, of)


# -- memory ------------------------------------------------------------------------------------------------------------


def _make_own_image_largest(fpu: Fpu) -> AllocFailure | None:
    """The scratch must take whatever the guest has. Its features, and so its layout, stay: the bytes can be copied."""
    config = fpu.host.config
    if fpu.fpstate.size >= config.kernel.max_size:
        return None
    new = _alloc_largest(fpu, POINT_TASK_REALLOC_ALLOC, fpu.fpstate)
    if isinstance(new, AllocFailure):
        return new
    fpu.host.preempt_point("realloc: allocated, not yet locked")
    old = fpu.fpstate
    _copy_image(fpu.cpu, new, old)
    fpu.fpstate = new
    free_replaced(fpu, old)
    return None


def _alloc_largest(fpu: Fpu, point: str, like: Fpstate) -> Fpstate | AllocFailure:
    """Allocate a container of the largest size that says of its image what ``like`` says, and has the same bytes."""
    host = fpu.host
    regs = host.allocator.vzalloc(point, fpu.account, host.config.kernel.max_size, FPSTATE_HEADER_BYTES)
    if isinstance(regs, AllocFailure):
        if host.tracer is not None:
            host.tracer.vzalloc(regs.size_bytes, None)
        return regs
    made = Fpstate(
        regs=regs,
        size=len(regs),
        user_size=like.user_size,
        xfeatures=like.xfeatures,
        user_xfeatures=like.user_xfeatures,
        xfd=like.xfd,
    )
    made.is_valloc, made.is_guest = True, like.is_guest
    made.regs[: like.size] = like.regs
    made.xcomp_bv = like.xcomp_bv
    if host.tracer is not None:
        host.tracer.vzalloc(made.allocated_bytes, made)
    return made


def _vfree(fpu: Fpu, fpstate: Fpstate) -> None:
    fpu.host.allocator.vfree(fpu.account, fpstate.allocated_bytes)
    if fpu.host.tracer is not None:
        fpu.host.tracer.vfree(fpstate)
