"""Bugs of memory: what is charged, what is given back, and what a vCPU has whose growth has failed."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Patch
from tests.planted.bug import Bug

BUGS: Final = (
    Bug(
        id="failed-growth-charged",
        title="A growth that fails stays charged",
        checks=frozenset({"invariants"}),
        plan="limits",
        patches=(
            Patch(
                "fpu_core.alloc",
                "            self._failed(account)\n            return AllocFailure(AllocFailureCause.NO_MEMORY,",
                "            self._failed(account)\n            self._charge(account, size_bytes)\n"
                "            return AllocFailure(AllocFailureCause.NO_MEMORY,",
            ),
        ),
    ),
    Bug(
        id="old-container-kept",
        title="The container that a larger one has replaced is never given back",
        checks=frozenset({"invariants"}),
        plan="limits",
        patches=(
            Patch(
                "fpu_core.swap", "    swap_out(fpu, guest)\n    free_replaced(fpu, old)\n", "    swap_out(fpu, guest)\n"
            ),
        ),
    ),
    Bug(
        id="limit-one-too-many",
        title="A limit lets the growth by that goes over it",
        checks=frozenset({"within-limits"}),
        plan="limits",
        patches=(
            Patch(
                "fpu_core.alloc",
                "self.used_bytes + size_bytes > self.limit_bytes",
                "self.used_bytes > self.limit_bytes",
            ),
        ),
    ),
    Bug(
        id="reclaim-while-enabled",
        title="RECLAIM takes a container whose guest may use the feature without asking",
        checks=frozenset({"invariants", "guest-sees-its-bytes"}),
        plan="limits",
        patches=(
            Patch(
                "host_agent.kvm.shrink",
                "    if vcpu.xcr0 & ~fpstate.xfd & dynamic:\n        return Unshrinkable.ENABLED\n",
                "",
            ),
        ),
    ),
    Bug(
        id="park-keeps-the-new-xfd",
        title="A vCPU is parked with the XFD that its write was to bring",
        checks=frozenset({"invariants", "parked-stands-still"}),
        plan="decisions",
        patches=(
            Patch(
                "fpu_core.swap",
                "    if isinstance(result, ReallocFailed):\n        swap_out(fpu, guest)\n",
                "    if isinstance(result, ReallocFailed):\n        swap_out(fpu, guest)\n"
                "        old.xfd = request.xfd\n",
            ),
        ),
    ),
    Bug(
        id="park-keeps-the-new-xcr0",
        title="A vCPU is parked with the XCR0 that its write was to bring",
        checks=frozenset({"invariants", "parked-stands-still"}),
        plan="limits",
        patches=(
            Patch(
                "host_agent.kvm.policy.on_swap",
                "        if isinstance(result, ReallocFailed):\n            return parked(vcpu,",
                "        vcpu.xcr0 = write.xcr0\n"
                "        if isinstance(result, ReallocFailed):\n            return parked(vcpu,",
            ),
        ),
    ),
    Bug(
        id="refused-and-there",
        title="A vCPU that there was no memory for is there all the same, though its VMM was told otherwise",
        checks=frozenset({"refused-changes-nothing"}),
        plan="limits",
        patches=(
            Patch(
                "host_agent.vcpus",
                '    if state.fault_errno("kvm.vcpu.alloc"):\n        raise out_of_memory(f"vCPU {name!r}", name)\n',
                "",
            ),
            Patch(
                "host_agent.vcpus",
                "    if command.task:\n        state.side(created).task = command.task\n",
                '    if state.fault_errno("kvm.vcpu.alloc"):\n        raise out_of_memory(f"vCPU {name!r}", name)\n'
                "    if command.task:\n        state.side(created).task = command.task\n",
            ),
        ),
    ),
    Bug(
        id="limit-raised-for-another",
        title="RAISE_LIMIT of the host raises the limit of the VM",
        checks=frozenset({"decision-is-done"}),
        plan="limits",
        patches=(
            Patch(
                "host_agent.decisions",
                "    _account(state, record, decision).set_limit(decision.bytes)\n",
                "    state.vms[record.vm].kvm.account.set_limit(decision.bytes)\n",
            ),
        ),
    ),
)
