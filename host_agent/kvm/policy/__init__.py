"""When memory for a larger container is taken: the kernel's several answers to one question, behind one seam.

| policy | memory is taken | who hears of a failure |
|---|---|---|
| ``on_swap`` | in the swap that leaves the guest (the founding mail; default) | userspace, by an exit |
| ``on_write`` | in the intercept, before the write is committed (December 2021) | the same |
| ``on_cpuid`` | at KVM_SET_CPUID2 (mainline) | the VMM, from that ioctl |
| ``three_buffer`` | at KVM_CREATE_VCPU, for the largest size (until 5.15) | the VMM, from that ioctl |

Nothing else asks which policy a VM has: what differs is a method of ``AllocationPolicy``.
"""

from __future__ import annotations

from typing import Final

from fpu_core.errors import FieldError
from host_agent.kvm.policy.allocation_policy import AllocationPolicy
from host_agent.kvm.policy.on_cpuid import OnCpuid
from host_agent.kvm.policy.on_swap import OnSwap
from host_agent.kvm.policy.on_write import OnWrite
from host_agent.kvm.policy.three_buffer import ThreeBuffer

ALLOCATION_POLICIES: Final[dict[str, AllocationPolicy]] = {
    policy.name: policy for policy in (OnSwap(), OnWrite(), OnCpuid(), ThreeBuffer())
}


def allocation_policy(name: str) -> AllocationPolicy:
    """Return the policy of that name; ``FieldError`` lists the ones there are."""
    found = ALLOCATION_POLICIES.get(name)
    if found is None:
        raise FieldError("vm.allocation_policy", f"one of {', '.join(ALLOCATION_POLICIES)}", name)
    return found
