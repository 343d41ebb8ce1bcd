"""When memory for a larger container is taken: the seam for the kernel's several answers to one question.

``on_swap`` is the founding mail's and the default. ``on_write`` (allocate in the intercept, before the write is
committed), ``on_cpuid`` (mainline: allocate at KVM_SET_CPUID2) and ``three_buffer`` (the scheme the mail replaces) have
their names here and are refused until they are built.
"""

from __future__ import annotations

from fpu_core.errors import FieldError
from host_agent.kvm.growth import grow_on_swap
from host_agent.kvm.vcpu import WritePolicy

ALLOCATION_POLICIES: dict[str, WritePolicy] = {"on_swap": grow_on_swap}


def allocation_policy(name: str) -> WritePolicy:
    """Return the policy of that name; ``FieldError`` lists the ones there are."""
    found = ALLOCATION_POLICIES.get(name)
    if found is None:
        raise FieldError("vm.allocation_policy", f"one of {', '.join(ALLOCATION_POLICIES)}", name)
    return found
