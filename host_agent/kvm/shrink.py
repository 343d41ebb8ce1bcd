"""Taking a container back to its default size, where the guest cannot tell.

It cannot where the vCPU is outside, the component that goes is in its init state in the image, and XCR0 and XFD do not
let the guest use it: then the guest's next step towards it is an XCR0 or XFD write, or an #NM whose handler writes XFD,
and that write is what grows a container. So XFD has to be intercepted again: whoever shrinks a vCPU whose XFD was
passed through sees to it that its VMM hears so before the guest runs.

XFD itself, XFD_ERR and the intercept of #NM stay: to the guest nothing has happened.
"""

from __future__ import annotations

import enum

from fpu_core.guest import shrink_guest_fpstate
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.vcpu import Vcpu


class Unshrinkable(enum.Enum):
    """Why a vCPU's container stays as it is. The last three are the agent's to find, the others KVM's."""

    #: It has its default size.
    NOTHING_TO_FREE = enum.auto()
    #: The VM's allocation policy settles the size before the guest runs.
    POLICY = enum.auto()
    #: A bug of the host stopped it: what is in its container is not to be trusted.
    BROKEN = enum.auto()
    #: It is in the guest.
    IN_GUEST = enum.auto()
    #: Firmware has its registers: whether they are in use is not known.
    CONFIDENTIAL = enum.auto()
    #: XCR0 and XFD let the guest use the feature without an exit.
    ENABLED = enum.auto()
    #: The image holds state of the feature.
    IN_USE = enum.auto()
    #: There is no such vCPU.
    NOT_FOUND = enum.auto()
    #: Another controller decides about its VM.
    NOT_CONTROLLED = enum.auto()
    #: XFD is passed through, and its VMM runs it without asking: it would hear of the intercept too late.
    VMM_NOT_TOLD = enum.auto()


def unshrinkable(vcpu: Vcpu) -> Unshrinkable | None:
    """Return why not; None where ``shrink`` may be called."""
    fpstate = vcpu.fpstate
    dynamic = fpstate.xfeatures & XFEATURE_MASK_USER_DYNAMIC
    if not vcpu.vm.policy.shrinks:
        return Unshrinkable.POLICY
    if not dynamic:
        return Unshrinkable.NOTHING_TO_FREE
    if vcpu.state is VcpuState.BROKEN:
        return Unshrinkable.BROKEN
    if vcpu.state is VcpuState.ENTERED:
        return Unshrinkable.IN_GUEST
    if fpstate.is_confidential:
        return Unshrinkable.CONFIDENTIAL
    if vcpu.xcr0 & ~fpstate.xfd & dynamic:
        return Unshrinkable.ENABLED
    return Unshrinkable.IN_USE if fpstate.xstate_bv & dynamic else None


def shrink(vcpu: Vcpu) -> int:
    """Shrink the container of a vCPU and intercept its XFD again; returns the bytes given back."""
    freed = shrink_guest_fpstate(vcpu.vm.leader, vcpu.guest)
    vcpu.xfd_passthrough = False
    return freed
