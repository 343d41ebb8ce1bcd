"""The pieces that every allocation policy makes its writes of: what is missing, the commit, the intercepts, parking."""

from __future__ import annotations

from fpu_core.guest import update_guest_xfd
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC
from host_agent.kvm.lifecycle import VcpuEvent
from host_agent.kvm.outcome import PendingWrite, ReallocExit, Trigger
from host_agent.kvm.vcpu import Vcpu


def needs_action(vcpu: Vcpu, *, xcr0: int, xfd: int) -> int:
    """Return the dynamic features that ``xcr0`` and ``xfd`` would enable and the container has no room for."""
    return xcr0 & ~xfd & XFEATURE_MASK_USER_DYNAMIC & ~vcpu.fpstate.xfeatures


def commit(vcpu: Vcpu, write: PendingWrite) -> None:
    """The write takes effect; there is room for what it enables, and the guest is loaded."""
    vcpu.xcr0 = write.xcr0
    if write.trigger is Trigger.WRMSR_XFD:
        update_guest_xfd(vcpu.fpu, vcpu.guest, write.xfd)
    update_intercepts(vcpu)


def parked(vcpu: Vcpu, left: ReallocExit) -> ReallocExit:
    """The vCPU has left the guest with its write undone: it is parked until userspace has decided."""
    vcpu.move(VcpuEvent.FAILED)
    return left


def update_intercepts(vcpu: Vcpu) -> None:
    """Arm #NM at the first non-zero XFD; stop intercepting XFD once no write of it could ever need growth.

    Mainline drops the XFD intercept at the first non-zero value, because there the container is full size from
    KVM_SET_CPUID2 on; here that has to be true first. Neither is ever re-armed, short of a container that shrinks or,
    between two lives, a CPUID that allows more than it holds.
    """
    if vcpu.fpstate.xfd:
        vcpu.nm_intercept = True
    if vcpu.nm_intercept and not vcpu.xfd_allowed & ~vcpu.fpstate.xfeatures:
        vcpu.xfd_passthrough = True
