"""``on_swap``: the founding mail. The intercept only asks; the swap on the way out grows, or fails to.

intercept: legal, needs_action     set the request, leave the loop: nothing is committed, nothing is allocated
swap-out                           sees the request and grows, or fails to
grown                              commit XCR0; XFD came with the new container; enter again behind the instruction
failed                             an exit to userspace; the instruction has not happened, the vCPU is parked
"""

from __future__ import annotations

from typing import ClassVar

from fpu_core.fpu import fpstate_set_realloc_request
from fpu_core.realloc import ReallocFailed
from host_agent.kvm.growth import commit, needs_action, parked, update_intercepts
from host_agent.kvm.outcome import DONE, Done, PendingWrite, ReallocExit
from host_agent.kvm.policy.allocation_policy import AllocationPolicy
from host_agent.kvm.run import vcpu_enter, vcpu_leave
from host_agent.kvm.vcpu import Vcpu


class OnSwap(AllocationPolicy):
    """Growth in the swap. Source: the founding mail, "XFD/XCR0 intercept case"."""

    name: ClassVar[str] = "on_swap"
    grows: ClassVar[str] = "request realloc, leave the loop, swap out"
    goes_on: ClassVar[str] = "enter again"

    def execute_write(self, vcpu: Vcpu, write: PendingWrite) -> Done | ReallocExit:
        """Commit at once where there is room; else leave the loop and let the swap decide."""
        missing = needs_action(vcpu, xcr0=write.xcr0, xfd=write.xfd)
        if not missing:
            commit(vcpu, write)
            return DONE
        return self._leave_and_grow(vcpu, write, missing)

    def _leave_and_grow(self, vcpu: Vcpu, write: PendingWrite, missing: int) -> Done | ReallocExit:
        """Set the request and leave; then commit and enter again, or stay outside, parked."""
        fpu = vcpu.fpu
        assert fpu is not None
        old_xcr0, old_xfd = vcpu.xcr0, vcpu.fpstate.xfd
        fpstate_set_realloc_request(vcpu.guest, missing, write.xfd)
        vcpu.vm.host.preempt_point("intercept: request set, not yet swapped out")
        result = vcpu_leave(vcpu)
        assert result is not None
        if isinstance(result, ReallocFailed):
            return parked(vcpu, ReallocExit(write, result, old_xcr0, old_xfd))
        vcpu.xcr0 = write.xcr0  # XFD came with the new container: both are true from here on
        update_intercepts(vcpu)
        vcpu_enter(vcpu, fpu)
        return Done(reallocated=result)
