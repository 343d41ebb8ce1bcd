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
    Mutant(
        id="B22",
        title="CPUID offers XTILE_CFG without XTILE_DATA",
        fix="KVM: x86: Filter out XTILE_CFG if XTILE_DATA isn't permitted; April 2023",
        breaks="of XTILE_CFG and XTILE_DATA a guest gets both or neither",
        patches=(
            Patch(
                "host_agent.kvm.vcpu",
                "            if not permitted & XFEATURE_MASK_USER_DYNAMIC:\n"
                "                permitted &= ~XFEATURE_MASK_XTILE_CFG\n",
                "",
            ),
        ),
    ),
    Mutant(
        id="B23",
        title="The compacted size ignores the alignment of components",
        fix="kvm: x86: Fix xstate_required_size() to follow XSTATE alignment rule; January 2022",
        breaks="the size CPUID.0xD.1 reports is the size of the image",
        patches=(
            Patch(
                "host_agent.kvm.cpuid",
                "    offsets = components.offsets(mask, compacted=compacted)\n    ends = ",
                "    if compacted:\n"
                "        return XSAVE_EXTENDED_OFFSET + sum(map(components.size_bytes, for_each_set_bit(mask & ~3)))\n"
                "    offsets = components.offsets(mask, compacted=compacted)\n    ends = ",
            ),
        ),
    ),
)
