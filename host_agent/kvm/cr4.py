"""The validity rules of CR4, as far as FPU state hangs on it. A failure is #GP(0).

Source: arch/x86/kvm/x86.c, kvm_is_valid_cr4(); x86.h, __cr4_reserved_bits(); kvm_host.h, CR4_RESERVED_BITS.
"""

from __future__ import annotations

from typing import Final

from host_agent.kvm.cpuid import X86_CR4_OSXSAVE, X86_CR4_PKE, GuestCpuid

#: Bits 0..13 (VME to VMXE), 16..18 (FSGSBASE PCIDE OSXSAVE), 20..23 (SMEP SMAP PKE CET), 28 (LAM_SUP).
_DEFINED: Final = 0x3FFF | 0x7_0000 | 0xF0_0000 | 1 << 28
#: Which capability of the guest each bit needs.
_NEEDS: Final = ((X86_CR4_OSXSAVE, "XSAVE"), (X86_CR4_PKE, "PKU"))


def cr4_error(cpuid: GuestCpuid, value: int) -> str | None:
    """Return the rule that CR4 = ``value`` breaks for a guest with this CPUID; None if it may be written."""
    if value & ~_DEFINED:
        return f"bits {value & ~_DEFINED:#x} are reserved"
    for bit, needed in _NEEDS:
        if value & bit and needed not in cpuid.features:
            return f"bit {bit.bit_length() - 1} needs {needed} in the guest's CPUID"
    return None
