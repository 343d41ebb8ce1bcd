"""What follows a growth that failed, wrong in one place. The right way: ``host_agent/kvm/policy/on_swap.py``."""

from __future__ import annotations

from collections.abc import Callable

from fpu_core.realloc import Reallocated, ReallocFailed
from fpu_core.swap import SwapResult
from host_agent.kvm.vcpu import Vcpu

Leave = Callable[[Vcpu], SwapResult]


def swallowed(right: Leave) -> Leave:
    """Who leaves in order to grow is told that it has grown, whatever came of it."""

    def leave(vcpu: Vcpu) -> SwapResult:
        result = right(vcpu)
        if isinstance(result, ReallocFailed):
            return Reallocated(vcpu.fpstate.size, vcpu.fpstate.size, result.xfeatures)
        return result

    return leave
