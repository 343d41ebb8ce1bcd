"""What ``on_cpuid`` and ``three_buffer`` share: the room is there before the guest can want it, so no write ever grows.

The rule that follows from it: a guest's CPUID offers what its container holds. So a vCPU whose CPUID was never set has
no dynamic feature under ``on_cpuid``, as in mainline, although a VM to which none was given offers what the host
supports.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from fpu_core.alloc import AllocFailure
from fpu_core.errors import Errno, core_assert
from fpu_core.permission import group_perm
from fpu_core.realloc import Reallocated, ReallocFailed
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC, XFEATURE_MASK_XTILE
from host_agent.kvm.cpuid import GuestCpuid
from host_agent.kvm.growth import commit, needs_action
from host_agent.kvm.outcome import Done, PendingWrite, ReallocExit
from host_agent.kvm.policy.allocation_policy import AllocationPolicy
from host_agent.kvm.vcpu import Vcpu


class UpFront(AllocationPolicy):
    """The guest's room is settled before it runs, and stays: no write would grow it again."""

    shrinks: ClassVar[bool] = False

    def create(self, vcpu: Vcpu) -> AllocFailure | Errno | None:
        """Allocate, and apply the CPUID that the VM has already. Permission comes first: EPERM then locks nothing."""
        vm = vcpu.vm
        if vm.given_xcr0 & XFEATURE_MASK_USER_DYNAMIC & ~group_perm(vm.leader, guest=True).state_perm:
            return Errno.EPERM
        failure = self.allocate(vcpu)
        if failure is not None:
            return failure
        errno = self.check_cpuid(vcpu, vm.given_xcr0)
        if errno is not Errno.OK:
            self.destroy(vcpu)
            return errno
        return None

    @abstractmethod
    def allocate(self, vcpu: Vcpu) -> AllocFailure | None:
        """What KVM_CREATE_VCPU takes."""

    def first_cpuid(self, vcpu: Vcpu) -> GuestCpuid:
        """Where the VM has none, no dynamic feature that the container lacks, and no XTILE_CFG without XTILE_DATA.

        So a container that grows later, for a CPUID that was refused in the end, enables nothing.
        """
        vm = vcpu.vm
        lacks = vm.cpuid.supported_xcr0 & XFEATURE_MASK_USER_DYNAMIC & ~vcpu.fpstate.xfeatures
        return vm.masked_cpuid(vm.cpuid.supported_xcr0 & ~XFEATURE_MASK_XTILE) if lacks else vm.cpuid

    def execute_write(self, vcpu: Vcpu, write: PendingWrite) -> Done | ReallocExit:
        """A legal write has room, so it is committed."""
        missing = needs_action(vcpu, xcr0=write.xcr0, xfd=write.xfd)
        core_assert(not missing, f"{vcpu} may enable {missing:#x}, for which it has no room")
        commit(vcpu, write)
        return Done()

    def grow_for_restore(self, vcpu: Vcpu, xfeatures: int) -> Reallocated | ReallocFailed | None:  # noqa: ARG002
        """Never: what the container lacks the ioctl refuses, as mainline does."""
        return None
