"""Where kernel versions differ, as one small table instead of branches all over.

``KERNEL_6_12`` is what the recorded data of Linux 6.12.117 shows; ``KERNEL_6_18`` is 6.18 plus the fix of January 2026
that clears XSTATE_BV[i] in a guest image whenever XFD[i] is set (commit b45f72177594), and is the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fpu_core.xfeature import (
    XFEATURE_MASK_APX,
    XFEATURE_MASK_BNDCSR,
    XFEATURE_MASK_BNDREGS,
    XFEATURE_MASK_CET,
    XFEATURE_MASK_GUEST_SUPERVISOR,
    XFEATURE_MASK_SUPERVISOR_SUPPORTED,
    XFEATURE_MASK_USER_SUPPORTED,
)

_MPX: Final = XFEATURE_MASK_BNDREGS | XFEATURE_MASK_BNDCSR


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRules:
    """One kernel version's differences. Every field names a behaviour, never a version."""

    name: str
    #: XFEATURE_MAX: feature numbers from here on are EINVAL for arch_prctl.
    xfeature_max: int
    user_supported: int
    supervisor_supported: int
    #: Features a guest container has and a host task's does not (CET_KERNEL, since 6.17).
    guest_supervisor: int
    #: Bug B6: a granted permission is stored as (permitted | requested) & USER_SUPPORTED, so supervisor bits are lost.
    #: Source: "x86/fpu/xstate: Always preserve non-user xfeatures/flags in __state_perm", posted November 2023.
    perm_loses_supervisor: bool
    #: sigreturn looks for the second magic word where the frame says it is, if its sizes are plausible. Since 6.14 it
    #: looks where the kernel's own size says, whatever the frame's fields are (bug B38).
    sigframe_says_its_size: bool
    #: What INIT of a vCPU clears: MPX, and CET since 6.18, where KVM has it. Source: x86.c, kvm_xstate_reset().
    init_clears: int
    #: struct fpu_guest still has its own copy of the permission (dropped in 2025, "Drop @perm from guest pseudo FPU").
    guest_keeps_perm: bool
    #: KVM_SUPPORTED_XSS: what a guest may have in IA32_XSS at all. Nothing until 6.18 brought guests CET.
    kvm_supported_xss: int
    #: Userspace may set a guest's XSS whatever its CPUID says. Later it needs XSAVES there, as the guest does.
    #: Source: arch/x86/kvm/x86.c, kvm_set_msr_common(), the guest CET series of 6.18.
    host_sets_xss_without_cpuid: bool


KERNEL_6_18: Final = KernelRules(
    name="6.18",
    xfeature_max=20,
    user_supported=XFEATURE_MASK_USER_SUPPORTED,
    supervisor_supported=XFEATURE_MASK_SUPERVISOR_SUPPORTED,
    guest_supervisor=XFEATURE_MASK_GUEST_SUPERVISOR,
    perm_loses_supervisor=False,
    sigframe_says_its_size=False,
    init_clears=_MPX | XFEATURE_MASK_CET,
    guest_keeps_perm=False,
    kvm_supported_xss=XFEATURE_MASK_CET,
    host_sets_xss_without_cpuid=False,
)
KERNEL_6_12: Final = KernelRules(
    name="6.12",
    xfeature_max=19,
    user_supported=XFEATURE_MASK_USER_SUPPORTED & ~XFEATURE_MASK_APX,
    supervisor_supported=XFEATURE_MASK_SUPERVISOR_SUPPORTED & ~XFEATURE_MASK_GUEST_SUPERVISOR,
    guest_supervisor=0,
    perm_loses_supervisor=True,
    sigframe_says_its_size=True,
    init_clears=_MPX,
    guest_keeps_perm=True,
    kvm_supported_xss=0,
    host_sets_xss_without_cpuid=True,
)
KERNEL_RULES: Final[dict[str, KernelRules]] = {rules.name: rules for rules in (KERNEL_6_18, KERNEL_6_12)}
