"""``on_write``: allocate in the intercept, inside the run loop, with the guest's registers where they are.

This is how the KVM series of December 2021 had it before it was reworked into ``on_cpuid``: it saves leaving the loop
and pays with an allocation inside it. What the guest sees, and what a failure is, is the same as under ``on_swap``.
Source: "x86/fpu: Preparatory changes for guest AMX support", 14 December 2021, fpu_update_guest_xcr0() and
fpu_update_guest_xfd().
"""

from __future__ import annotations

from typing import ClassVar

from fpu_core.realloc import ReallocFailed, realloc_guest_fpstate
from host_agent.kvm.growth import commit, needs_action, parked
from host_agent.kvm.outcome import Done, PendingWrite, ReallocExit
from host_agent.kvm.policy.allocation_policy import AllocationPolicy
from host_agent.kvm.run import vcpu_leave
from host_agent.kvm.vcpu import Vcpu


class OnWrite(AllocationPolicy):
    """Growth in the intercept."""

    name: ClassVar[str] = "on_write"
    grows: ClassVar[str] = "allocate in the intercept"
    goes_on: ClassVar[str] = "go on"

    def execute_write(self, vcpu: Vcpu, write: PendingWrite) -> Done | ReallocExit:
        """Grow where there is no room, then commit; no swap. Where growing fails the vCPU leaves, and is parked."""
        missing = needs_action(vcpu, xcr0=write.xcr0, xfd=write.xfd)
        if not missing:
            commit(vcpu, write)
            return Done()
        assert vcpu.fpu is not None
        vcpu.vm.host.preempt_point("intercept: the allocation may sleep")
        result = realloc_guest_fpstate(vcpu.fpu, vcpu.guest, missing)
        if isinstance(result, ReallocFailed):
            left = ReallocExit(write, result, vcpu.xcr0, vcpu.fpstate.xfd)
            vcpu_leave(vcpu)
            return parked(vcpu, left)
        commit(vcpu, write)
        return Done(reallocated=result)
