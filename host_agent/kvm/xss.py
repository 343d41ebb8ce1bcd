"""The validity rules of IA32_XSS (0xDA0): to a guest a failure is #GP(0), to a VMM one MSR fewer done.

Source: arch/x86/kvm/x86.c, kvm_set_msr_common() and kvm_get_msr_common(), MSR_IA32_XSS; kvm_do_msr_access().
"""

from __future__ import annotations

from host_agent.kvm.vcpu import Vcpu


def xss_unsupported(vcpu: Vcpu, *, host_initiated: bool) -> str | None:
    """Return why there is no XSS for this access at all; None if there is.

    The guest needs XSAVES in its CPUID. So does userspace since 6.18; before, it did not.
    """
    if vcpu.has_xsaves or (host_initiated and vcpu.vm.host.config.rules.host_sets_xss_without_cpuid):
        return None
    return "the guest's CPUID has no XSAVES"


def xss_error(vcpu: Vcpu, value: int, *, host_initiated: bool) -> str | None:
    """Return the rule that XSS = ``value`` breaks; None if it may be written.

    An MSR that KVM lists for saving, but the guest has not, still takes a 0 from userspace.
    """
    unsupported = xss_unsupported(vcpu, host_initiated=host_initiated)
    if unsupported is not None:
        return None if host_initiated and value == 0 and vcpu.vm.supported_xss else unsupported
    if value & ~vcpu.guest_supported_xss:
        return f"bits {value & ~vcpu.guest_supported_xss:#x} are not supported for this guest"
    return None
