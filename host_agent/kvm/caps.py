"""KvmCaps: what KVM could give a guest on this host, permission aside (kvm_caps and kvm_cpu_caps).

Of KVM's feature flags only those that hang on FPU state are here.

Sources: arch/x86/kvm/x86.c, KVM_SUPPORTED_XCR0 and kvm_setup_xss_caps(); cpuid.c, kvm_set_cpu_caps();
vmx/vmx.c, vmx_set_cpu_caps(); arch/x86/kernel/cpu/cpuid-deps.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fpu_core.config import FpuConfig
from fpu_core.xfeature import (
    XFEATURE_MASK_AVX512,
    XFEATURE_MASK_BNDCSR,
    XFEATURE_MASK_BNDREGS,
    XFEATURE_MASK_CET,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_PKRU,
    XFEATURE_MASK_XTILE,
    XFEATURE_MASK_YMM,
)

MASK_BND: Final = XFEATURE_MASK_BNDREGS | XFEATURE_MASK_BNDCSR

#: What KVM can give a guest at all. Source: arch/x86/kvm/x86.c, KVM_SUPPORTED_XCR0.
KVM_SUPPORTED_XCR0: Final = (
    XFEATURE_MASK_FPSSE | XFEATURE_MASK_YMM | MASK_BND | XFEATURE_MASK_AVX512 | XFEATURE_MASK_PKRU | XFEATURE_MASK_XTILE
)

#: The components a capability's instructions work on.
CAP_XFEATURES: Final[dict[str, int]] = {
    "AVX": XFEATURE_MASK_YMM,
    "MPX": MASK_BND,
    "AVX512F": XFEATURE_MASK_AVX512,
    "PKU": XFEATURE_MASK_PKRU,
    "AMX_TILE": XFEATURE_MASK_XTILE,
    "SHSTK": XFEATURE_MASK_CET,
}
#: What else KVM looks for in the processor; all of it goes where the kernel has given up XSAVE.
_XSAVE_CAPS: Final = ("XSAVE", "XSAVEOPT", "XSAVEC", "XGETBV1", "XSAVES", "XFD")
#: Capabilities that KVM gives only with their components. The others it takes from the processor's flags as they are.
_NEED_COMPONENTS: Final = ("MPX", "SHSTK")


@dataclass(frozen=True, slots=True)
class KvmCaps:
    """``supported_xcr0`` and ``supported_xss`` as in kvm_caps; ``features``: capabilities, in the kernel's names."""

    supported_xcr0: int
    supported_xss: int
    features: frozenset[str]


def kvm_caps(config: FpuConfig) -> KvmCaps:
    """What KVM finds on a host when it is loaded."""
    supported_xcr0 = config.user.max_features & KVM_SUPPORTED_XCR0
    if supported_xcr0 & MASK_BND != MASK_BND:
        supported_xcr0 &= ~MASK_BND
    supported_xss = _supported_xss(config)
    found = {cap for cap in (*_XSAVE_CAPS, *CAP_XFEATURES) if _has_flag(config, cap)}
    lost = {cap for cap in _NEED_COMPONENTS if not has_xfeatures(cap, supported_xcr0 | supported_xss)}
    return KvmCaps(supported_xcr0, supported_xss, frozenset(found - lost))


def _has_flag(config: FpuConfig, cap: str) -> bool:
    """PKU is there where the kernel has switched it on."""
    return config.xsave and bool(getattr(config.caps, "OSPKE" if cap == "PKU" else cap))


def has_xfeatures(cap: str, mask: int) -> bool:
    """Whether ``mask`` has every component that ``cap`` works on."""
    return not CAP_XFEATURES.get(cap, 0) & ~mask


def _supported_xss(config: FpuConfig) -> int:
    """CET, both halves of it or none, where the host has XSAVES and saves it."""
    supported = config.kernel.max_features & config.rules.kvm_supported_xss
    return supported if config.caps.XSAVES and supported & XFEATURE_MASK_CET == XFEATURE_MASK_CET else 0
