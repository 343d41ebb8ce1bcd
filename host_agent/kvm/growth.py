"""How a legal write happens: at once where the container has room, after growth where it has not (the founding mail).

intercept: legal, needs_action     set the request, leave the loop: nothing is committed, nothing is allocated
swap-out                           sees the request and grows, or fails to
grown                              commit XCR0; XFD came with the new container; enter again behind the instruction
failed                             an exit to userspace; the instruction has not happened, the vCPU is parked
"""

from __future__ import annotations

from fpu_core.fpu import fpstate_set_realloc_request
from fpu_core.guest import update_guest_xfd
from fpu_core.realloc import ReallocFailed
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC
from host_agent.kvm.lifecycle import VcpuEvent
from host_agent.kvm.outcome import Done, PendingWrite, ReallocExit, Trigger
from host_agent.kvm.run import vcpu_enter, vcpu_leave
from host_agent.kvm.vcpu import Vcpu


def needs_action(vcpu: Vcpu, *, xcr0: int, xfd: int) -> int:
    """Return the dynamic features that ``xcr0`` and ``xfd`` would enable and the container has no room for."""
    return xcr0 & ~xfd & XFEATURE_MASK_USER_DYNAMIC & ~vcpu.fpstate.xfeatures


def grow_on_swap(vcpu: Vcpu, write: PendingWrite) -> Done | ReallocExit:
    """Policy ``on_swap``: commit at once, or grow in the swap-out. A retry after a failure comes in here again."""
    missing = needs_action(vcpu, xcr0=write.xcr0, xfd=write.xfd)
    if not missing:
        _commit(vcpu, write)
        return Done()
    return _leave_and_grow(vcpu, write, missing)


def _commit(vcpu: Vcpu, write: PendingWrite) -> None:
    vcpu.xcr0 = write.xcr0
    if write.trigger is Trigger.WRMSR_XFD:
        update_guest_xfd(vcpu.fpu, vcpu.guest, write.xfd)
    update_intercepts(vcpu)


def _leave_and_grow(vcpu: Vcpu, write: PendingWrite, missing: int) -> Done | ReallocExit:
    """Set the request, leave the loop, let the swap decide; then commit and enter again, or stay outside, parked."""
    fpu = vcpu.fpu
    assert fpu is not None
    old_xcr0, old_xfd = vcpu.xcr0, vcpu.fpstate.xfd
    fpstate_set_realloc_request(vcpu.guest, missing, write.xfd)
    vcpu.vm.host.preempt_point("intercept: request set, not yet swapped out")
    result = vcpu_leave(vcpu)
    assert result is not None
    if isinstance(result, ReallocFailed):
        vcpu.move(VcpuEvent.FAILED)
        return ReallocExit(write, result, old_xcr0, old_xfd)
    vcpu.xcr0 = write.xcr0  # XFD came with the new container: both are true from here on
    update_intercepts(vcpu)
    vcpu_enter(vcpu, fpu)
    return Done(reallocated=result)


def update_intercepts(vcpu: Vcpu) -> None:
    """Arm #NM at the first non-zero XFD; stop intercepting XFD once no write of it could ever need growth.

    Mainline drops the XFD intercept at the first non-zero value, because there the container is full size from
    KVM_SET_CPUID2 on; here that has to be true first. Neither is ever re-armed, short of a container that shrinks.
    """
    if vcpu.fpstate.xfd:
        vcpu.nm_intercept = True
    if vcpu.nm_intercept and not vcpu.xfd_allowed & ~vcpu.fpstate.xfeatures:
        vcpu.xfd_passthrough = True
