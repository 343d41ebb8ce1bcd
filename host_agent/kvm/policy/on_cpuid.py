"""``on_cpuid``: mainline. The container gets its full size when userspace sets the CPUID, and only there.

Source: arch/x86/kvm/cpuid.c, kvm_check_cpuid(); arch/x86/kernel/fpu/core.c, fpu_enable_guest_xfd_features().
"""

from __future__ import annotations

from typing import ClassVar

from fpu_core.alloc import AllocFailure
from fpu_core.errors import Errno
from fpu_core.guest import alloc_guest_fpstate, enable_guest_xfd_features
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC
from host_agent.kvm.policy.up_front import UpFront
from host_agent.kvm.vcpu import Vcpu


class OnCpuid(UpFront):
    """Growth at KVM_SET_CPUID2."""

    name: ClassVar[str] = "on_cpuid"

    def allocate(self, vcpu: Vcpu) -> AllocFailure | None:
        """The default container."""
        return alloc_guest_fpstate(vcpu.vm.leader, vcpu.guest)

    def check_cpuid(self, vcpu: Vcpu, xcr0: int) -> Errno:
        """Grow for the dynamic features of ``xcr0``: EPERM without permission, EFAULT where there is no memory."""
        return enable_guest_xfd_features(vcpu.vm.leader, vcpu.guest, xcr0 & XFEATURE_MASK_USER_DYNAMIC)
