"""AllocationPolicy: every place where it matters when the memory for a guest's container is taken, one method each.

The methods in order of a vCPU's life: create, first_cpuid, check_cpuid, swap_in, execute_write, swap_out,
grow_for_restore, destroy. What is written out here is what ``on_swap`` does, and whoever has no reason to differ.
A policy has no state of its own: all VMs share the one object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from fpu_core.alloc import AllocFailure
from fpu_core.errors import Errno
from fpu_core.fpu import Fpu, FpuGuest
from fpu_core.guest import alloc_guest_fpstate, free_guest_fpstate
from fpu_core.realloc import Reallocated, ReallocFailed, realloc_guest_fpstate, realloc_guest_image
from fpu_core.swap import SwapResult, abandon_swap, swap_in, swap_out
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC
from host_agent.kvm.cpuid import GuestCpuid
from host_agent.kvm.outcome import Done, PendingWrite, ReallocExit
from host_agent.kvm.vcpu import Vcpu


class AllocationPolicy(ABC):
    """How one VM's containers get their room."""

    #: As CreateVm has it.
    name: ClassVar[str]
    #: What a timeline says of a write that needs growth, and of how the guest goes on behind it.
    grows: ClassVar[str] = ""
    goes_on: ClassVar[str] = ""
    #: Whether a container that has grown may shrink again: the next use of what it lacks then grows it anew.
    shrinks: ClassVar[bool] = True

    def create(self, vcpu: Vcpu) -> AllocFailure | Errno | None:
        """KVM_CREATE_VCPU: None, or why there is no vCPU. Whatever was taken by then is given back.

        An ``Errno`` is the one of a CPUID that was set for the whole VM before, and now cannot be had.
        """
        return alloc_guest_fpstate(vcpu.vm.leader, vcpu.guest)

    def destroy(self, vcpu: Vcpu) -> None:
        """The vCPU, which is outside the guest, goes: give back what exists because of it."""
        free_guest_fpstate(vcpu.vm.leader, vcpu.guest)

    def check_cpuid(self, vcpu: Vcpu, xcr0: int) -> Errno:  # noqa: ARG002 -- of those policies that allocate there
        """KVM_SET_CPUID2, before the CPUID is taken; 0xD.0 EDX:EAX is ``xcr0``. Source: cpuid.c, kvm_check_cpuid().

        Anything but OK leaves CPUID and container as they were.
        """
        return Errno.OK

    def first_cpuid(self, vcpu: Vcpu) -> GuestCpuid:
        """The CPUID a new vCPU has until one is set for it: the VM's, which is all the host supports by default."""
        return vcpu.vm.cpuid

    def swap_in(self, fpu: Fpu, guest: FpuGuest) -> AllocFailure | None:
        """KVM_RUN begins on ``fpu``; not None if it cannot, and nothing has changed."""
        swap_in(fpu, guest)
        return None

    def swap_out(self, fpu: Fpu, guest: FpuGuest) -> SwapResult:
        """KVM_RUN ends; how a pending growth went."""
        return swap_out(fpu, guest)

    def abandon(self, fpu: Fpu, guest: FpuGuest) -> None:
        """The thread goes on without the guest after a bug of ours."""
        abandon_swap(fpu, guest)

    @abstractmethod
    def execute_write(self, vcpu: Vcpu, write: PendingWrite) -> Done | ReallocExit:
        """A legal XCR0 or XFD write happens: committed, or an exit with nothing committed and the vCPU parked.

        A retry comes in here again.
        """

    def grow_for_restore(self, vcpu: Vcpu, xfeatures: int) -> Reallocated | ReallocFailed | None:
        """A host-initiated KVM_SET_XSAVE, KVM_SET_XCRS or KVM_SET_MSRS wants room for ``xfeatures``: grow at once.

        None where there is nothing to gain: what the container then lacks is for the ioctl's own checks to refuse.
        What the vCPU's registers hold is kept; a vCPU in the guest needs its thread running. A failure changes nothing,
        and its errno, ENOMEM or EPERM, is the ioctl's.
        """
        missing = xfeatures & XFEATURE_MASK_USER_DYNAMIC & ~vcpu.fpstate.xfeatures
        if not missing:
            return None
        if vcpu.fpu is not None:
            return realloc_guest_fpstate(vcpu.fpu, vcpu.guest, missing)
        return realloc_guest_image(vcpu.vm.leader, vcpu.guest, missing)
