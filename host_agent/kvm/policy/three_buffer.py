"""``three_buffer``: what the founding mail replaces, as the baseline to count against. ``fpu_core.three_buffer`` swaps.

Every buffer has the largest size from the start, so only KVM_CREATE_VCPU can fail for want of memory, and the first
KVM_RUN on a thread whose own image is smaller. Source: arch/x86/kvm/x86.c of 5.15, kvm_arch_vcpu_create().
"""

from __future__ import annotations

from typing import ClassVar

from fpu_core import three_buffer
from fpu_core.alloc import AllocFailure
from fpu_core.errors import Errno
from fpu_core.fpu import Fpu, FpuGuest
from fpu_core.swap import SwapResult
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC
from host_agent.kvm.policy.up_front import UpFront
from host_agent.kvm.vcpu import Vcpu


class ThreeBuffer(UpFront):
    """Two buffers beside the thread's own, and everything copied between them."""

    name: ClassVar[str] = "three_buffer"

    def allocate(self, vcpu: Vcpu) -> AllocFailure | None:
        """``user_fpu`` and ``guest_fpu``."""
        return three_buffer.alloc_kvm_buffers(vcpu.vm.leader, vcpu.guest)

    def destroy(self, vcpu: Vcpu) -> None:
        """Free both."""
        three_buffer.free_kvm_buffers(vcpu.vm.leader, vcpu.guest)

    def check_cpuid(self, vcpu: Vcpu, xcr0: int) -> Errno:
        """Allocates nothing; what the process may not give a guest is EPERM, as under every policy."""
        lacks = xcr0 & XFEATURE_MASK_USER_DYNAMIC & ~vcpu.fpstate.xfeatures
        return Errno.EPERM if lacks else Errno.OK

    def swap_in(self, fpu: Fpu, guest: FpuGuest) -> AllocFailure | None:
        """Save the user into ``user_fpu``, load ``guest_fpu``; ENOMEM where the thread's own image had to grow."""
        return three_buffer.swap_in(fpu, guest)

    def swap_out(self, fpu: Fpu, guest: FpuGuest) -> SwapResult:
        """Save the guest into ``guest_fpu``, load ``user_fpu``."""
        three_buffer.swap_out(fpu, guest)
        return None

    def abandon(self, fpu: Fpu, guest: FpuGuest) -> None:
        """The user's state comes back out of ``user_fpu``."""
        three_buffer.abandon_swap(fpu, guest)
