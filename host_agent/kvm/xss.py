"""The validity rules of IA32_XSS (0xDA0): to a guest a failure is #GP(0), to a VMM one MSR fewer done.

Source: arch/x86/kvm/x86.c, kvm_set_msr_common() and kvm_get_msr_common(), MSR_IA32_XSS; kvm_do_msr_access().
"""

from __future__ import annotations

from host_agent.kvm.vcpu import Vcpu


def xss_unsupported(vcpu: Vcpu) -> str | None:
    """Return why the guest cannot read XSS; None if it can. Userspace always can."""
    return None if "XSAVES" in vcpu.cpuid.declared else "the guest's CPUID has no XSAVES"


def xss_error(vcpu: Vcpu, value: int, *, host_initiated: bool) -> str | None:
    """Return the rule that XSS = ``value`` breaks; None if it may be written.

    Since 6.18 userspace too needs XSAVES in the guest's CPUID to write it; a 0 goes where KVM lists XSS for saving.
    """
    vm = vcpu.vm
    if "XSAVES" not in vcpu.cpuid.declared:
        if not host_initiated:
            return "the guest's CPUID has no XSAVES"
        if not vm.host.config.rules.host_sets_xss_without_cpuid:
            listed = bool(vm.caps.supported_xss)
            return None if listed and value == 0 else "the guest's CPUID has no XSAVES"
    if value & ~vcpu.guest_supported_xss:
        return f"bits {value & ~vcpu.guest_supported_xss:#x} are not supported for this guest"
    return None
