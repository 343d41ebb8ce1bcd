"""Bugs of state in and out: the user format, KVM_GET_XSAVE and KVM_SET_XSAVE, and what CPUID says of them."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Mutant, Patch

EXHIBITS: Final = (
    Mutant(
        id="B8",
        title="A component is looked for where a larger image would have it",
        fix="x86/fpu/xsave: Handle compacted offsets correctly with supervisor states; March 2022",
        breaks="what goes into an image comes out of it, whatever its layout",
        patches=(
            Patch(
                "fpu_core.fpstate",
                "        return config.table.offsets(fpstate.xcomp_bv & ~XCOMP_BV_COMPACTED_FORMAT, compacted=True)\n",
                "        return config.table.offsets(config.kernel.max_features, compacted=True)\n",
            ),
        ),
    ),
    Mutant(
        id="B10",
        title="A component in its init state is copied out of an image that has not got it",
        fix="x86/fpu: Fix copy_xstate_to_uabi() to copy init states correctly; November 2022, 471f0aa7fa64",
        cve="CVE-2022-50425",
        breaks="a component that XSTATE_BV has not is zeros in the user format",
        patches=(
            Patch(
                "fpu_core.uabi",
                "    for nr in for_each_set_bit(bv & ~XFEATURE_MASK_FPSSE):\n        length = table.size_bytes(nr)\n",
                "    for nr in for_each_set_bit(fpstate.user_xfeatures & xfeatures & ~XFEATURE_MASK_FPSSE):\n"
                "        length = table.size_bytes(nr)\n",
            ),
        ),
    ),
    Mutant(
        id="B11",
        title="The user format of a guest is as small as the host's registers",
        fix="x86/fpu: KVM: Set the base guest FPU uABI size to sizeof(struct kvm_xsave); May 2022, d187ba531230",
        cve="CVE-2022-49557",
        breaks="KVM_GET_XSAVE moves 4,096 bytes, on every host",
        patches=(
            Patch(
                "fpu_core.guest",
                "    return max(KVM_XSAVE_BYTES, config.user.default_size)\n",
                "    return config.user.default_size\n",
            ),
        ),
    ),
    Mutant(
        id="B12",
        title="KVM_GET_XSAVE exports features that the guest was never given",
        fix="x86/kvm/fpu: Limit guest user_xfeatures to supported bits of XCR0; February 2022, ad856280ddea",
        breaks="exported XSTATE_BV is within the guest's CPUID, x87 and SSE aside",
        patches=(
            Patch(
                "host_agent.kvm.xsave_ioctl",
                "    exported = vcpu.guest_supported_xcr0 | XFEATURE_MASK_FPSSE\n",
                "    exported = vcpu.fpstate.user_xfeatures\n",
            ),
        ),
    ),
    Mutant(
        id="B13",
        title="KVM_SET_XSAVE refuses an image with more than the guest's CPUID has",
        fix="KVM: x86: Constrain guest-supported xfeatures only at KVM_GET_XSAVE{2}; October 2023, 8647c52e9504",
        breaks="an image that one host exported is taken by another; user_xfeatures never shrink",
        patches=(
            Patch(
                "host_agent.kvm.vcpu",
                "    vcpu.fpstate.is_confidential = confidential\n",
                "    vcpu.fpstate.is_confidential = confidential\n"
                "    vcpu.fpstate.user_xfeatures &= vcpu.guest_supported_xcr0 | 3\n",
            ),
        ),
    ),
    Mutant(
        id="B14",
        title="KVM_SET_XSAVE refuses x87 and SSE where the guest's CPUID has no XSAVE",
        fix="x86/kvm/fpu: the same series; a fix of ad856280ddea",
        breaks="x87 and SSE are always accepted",
        patches=(
            Patch(
                "host_agent.kvm.vcpu",
                "    vcpu.fpstate.is_confidential = confidential\n",
                "    vcpu.fpstate.is_confidential = confidential\n"
                "    vcpu.fpstate.user_xfeatures &= vcpu.guest_supported_xcr0 | ~3\n",
            ),
        ),
    ),
    Mutant(
        id="B29",
        title="The mask of the MXCSR bits is applied the wrong way round",
        fix="x86/fpu: Mask out the invalid MXCSR bits properly; October 2021, b2381acd3fd9",
        breaks="reserved MXCSR bits are refused, and legal ones are kept",
        patches=(
            Patch(
                "fpu_core.uabi",
                "    if bv & (XFEATURE_MASK_FP | _SSE_YMM) and _mxcsr(buf) & ~config.mxcsr_mask:\n",
                "    if bv & (XFEATURE_MASK_FP | _SSE_YMM) and _mxcsr(buf) & config.mxcsr_mask:\n",
            ),
        ),
    ),
)
