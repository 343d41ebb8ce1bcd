"""Bugs of KVM: INIT, #NM, what CPUID advertises."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Mutant, Patch

EXHIBITS: Final = (
    Mutant(
        id="B20",
        title="INIT unloads a guest that is not loaded",
        fix='KVM: x86: Unload "FPU" state on INIT iff in-use; October 2025, 8819a49f9ff8',
        breaks="entered_means_a_thread",
        patches=(
            Patch(
                "host_agent.guest_events",
                "    if was_entered:\n        leave_guest(vm, vcpu)\n",
                "    leave_guest(vm, vcpu)\n",
            ),
        ),
    ),
    Mutant(
        id="B21",
        title="INIT on a processor with MPX unloads a guest that is not loaded",
        fix="KVM: x86: Fix potential put_fpu() w/o load_fpu() on MPX platform; February 2020, f958bd2314d1",
        breaks="entered_means_a_thread",
        patches=(
            Patch(
                "host_agent.guest_events",
                "    if was_entered:\n        leave_guest(vm, vcpu)\n",
                "    if was_entered or vm.platform.host.config.caps.MPX:\n        leave_guest(vm, vcpu)\n",
            ),
        ),
    ),
    Mutant(
        id="B32",
        title="An #NM that CR0.TS caused changes XFD_ERR",
        fix="KVM: VMX: is_xfd_nm_fault()",
        breaks="XFD_ERR changes by an #NM that XFD caused, and by no other",
        patches=(
            Patch(
                "host_agent.kvm.intercept",
                "    if fpstate.xfd and not cr0_ts:\n",
                "    if fpstate.xfd:\n",
            ),
        ),
    ),
)
