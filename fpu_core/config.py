"""FpuConfig: what the kernel works out once, at boot, from a processor and its own rules.

Source: arch/x86/kernel/fpu/xstate.c, fpu__init_system_xstate(); guest defaults as split off in 6.17.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fpu_core.cpuid import CpuCaps, CpuidProfile
from fpu_core.layout import FXSAVE_SIZE_BYTES, ComponentTable
from fpu_core.rules import KERNEL_6_18, KernelRules
from fpu_core.silicon import Silicon, silicon_of
from fpu_core.xfeature import (
    XFEATURE_APX,
    XFEATURE_BNDCSR,
    XFEATURE_BNDREGS,
    XFEATURE_CET_KERNEL,
    XFEATURE_CET_USER,
    XFEATURE_FP,
    XFEATURE_MASK_APX,
    XFEATURE_MASK_FP,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_INDEPENDENT,
    XFEATURE_MASK_PKRU,
    XFEATURE_MASK_USER_DYNAMIC,
    XFEATURE_OPMASK,
    XFEATURE_PASID,
    XFEATURE_PKRU,
    XFEATURE_PT,
    XFEATURE_SSE,
    XFEATURE_XTILE_CFG,
    XFEATURE_XTILE_DATA,
    XFEATURE_YMM,
    XFEATURE_Hi16_ZMM,
    XFEATURE_ZMM_Hi256,
    feature_mask,
    for_each_set_bit,
)

#: The CPUID flag each feature needs. One without an entry, other than x87, is dropped.
_DEPENDS_ON: Final[dict[int, str]] = {
    XFEATURE_FP: "FPU",
    XFEATURE_SSE: "XMM",
    XFEATURE_YMM: "AVX",
    XFEATURE_BNDREGS: "MPX",
    XFEATURE_BNDCSR: "MPX",
    XFEATURE_OPMASK: "AVX512F",
    XFEATURE_ZMM_Hi256: "AVX512F",
    XFEATURE_Hi16_ZMM: "AVX512F",
    XFEATURE_PT: "INTEL_PT",
    XFEATURE_PKRU: "OSPKE",
    XFEATURE_PASID: "ENQCMD",
    XFEATURE_CET_USER: "SHSTK",
    XFEATURE_CET_KERNEL: "SHSTK",
    XFEATURE_XTILE_CFG: "AMX_TILE",
    XFEATURE_XTILE_DATA: "AMX_TILE",
    XFEATURE_APX: "APX",
}
_MXCSR_MASK: Final = 0xFFFF
_MXCSR_MM: Final = 1 << 17
_INIT_PKRU: Final = 0x5555_5554
_MPX: Final = feature_mask(XFEATURE_BNDREGS, XFEATURE_BNDCSR)


@dataclass(frozen=True, slots=True, kw_only=True)
class FpuStateConfig:
    """One of the pair ``fpu_kernel_cfg`` / ``fpu_user_cfg``. Sizes in bytes.

    ``max`` is everything the kernel can handle; ``default`` is what every context starts with.
    """

    max_features: int
    default_features: int
    max_size: int
    default_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FpuConfig:
    """The boot-time configuration of one host, and the tables everything else reads."""

    profile: CpuidProfile
    rules: KernelRules
    #: What this maker's processors do where the architecture leaves it open.
    silicon: Silicon
    caps: CpuCaps
    table: ComponentTable
    kernel: FpuStateConfig
    user: FpuStateConfig
    #: What a guest container starts with (guest_default_cfg): features and kernel image size in bytes.
    guest_default_features: int
    guest_default_size: int
    legacy_features: int
    independent_features: int
    #: XFD of init_fpstate and so of every new task: all dynamic features disabled. 0 switches the XFD code off.
    init_xfd: int
    xsave: bool

    @property
    def has_xfd(self) -> bool:
        """Whether XFD is ever switched: the kernel's static branch __fpu_state_size_dynamic."""
        return self.init_xfd != 0

    @property
    def xcr0(self) -> int:
        """XCR0 of every CPU while the host runs."""
        return self.user.max_features

    @property
    def xss(self) -> int:
        """IA32_XSS likewise."""
        return (self.kernel.max_features & ~self.user.max_features) | self.independent_features

    @property
    def has_pkru(self) -> bool:
        """Whether the kernel switches PKRU: CR4.PKE is set, and so is bit 9 of XCR0."""
        return bool(self.kernel.max_features & XFEATURE_MASK_PKRU)

    @property
    def init_pkru(self) -> int:
        """PKRU of a new program: every key but 0 is access-disabled. Source: arch/x86/mm/pkeys.c, init_pkru_value."""
        return _INIT_PKRU if self.has_pkru else 0

    @property
    def mxcsr_mask(self) -> int:
        """The bits MXCSR may have, as FXSAVE reports them at byte 28: 16, and MM (17) where there is MISALIGNSSE.

        Sources: Intel SDM vol. 1, 11.6.6; AMD APM vol. 1, 4.2.2; seen on a Zen 4 (0x2ffff).
        """
        return _MXCSR_MASK | (_MXCSR_MM if self.caps.MISALIGNSSE else 0)

    @property
    def compacted(self) -> bool:
        """Whether kernel images have the compacted format."""
        return self.table.compacted

    def kernel_size(self, mask: int) -> int:
        """Return the bytes of a kernel image of ``mask``."""
        return self.table.calculate_size(mask, compacted=True)

    def user_size(self, mask: int) -> int:
        """Return the bytes of a user (standard-format) image of ``mask``."""
        return self.table.calculate_size(mask & self.rules.user_supported, compacted=False)


def boot(profile: CpuidProfile, rules: KernelRules = KERNEL_6_18, *, silicon: Silicon | None = None) -> FpuConfig:
    """Compute the configuration of a host whose processor is ``profile`` under ``rules``.

    ``silicon`` is for data that was not made by the maker's own processor; by default the profile says it.
    """
    if silicon is None:
        silicon = silicon_of(profile)
    caps = profile.caps
    table = ComponentTable.from_profile(profile)
    reported = profile.xcr0_mask | profile.xss_mask
    if not _xsave_usable(caps, reported):
        return _without_xsave(profile, rules, silicon, table)
    max_features = _kernel_max_features(caps, rules, reported)
    if max_features & XFEATURE_MASK_APX and max_features & _MPX:
        return _without_xsave(profile, rules, silicon, table)  # the two overlap in the standard format
    host_only = ~(XFEATURE_MASK_USER_DYNAMIC | rules.guest_supervisor)
    kernel = _state_config(table, max_features, max_features & host_only, compacted=True)
    user_max = max_features & rules.user_supported
    user = _state_config(table, user_max, user_max & host_only, compacted=False)
    guest_features = max_features & ~XFEATURE_MASK_USER_DYNAMIC
    return FpuConfig(
        profile=profile,
        rules=rules,
        silicon=silicon,
        caps=caps,
        table=table,
        kernel=kernel,
        user=user,
        guest_default_features=guest_features,
        guest_default_size=table.calculate_size(guest_features, compacted=True),
        legacy_features=XFEATURE_MASK_FPSSE if caps.FXSR else XFEATURE_MASK_FP,
        independent_features=reported & XFEATURE_MASK_INDEPENDENT,
        init_xfd=user_max & XFEATURE_MASK_USER_DYNAMIC,
        xsave=True,
    )


def _xsave_usable(caps: CpuCaps, reported: int) -> bool:
    return caps.XSAVE and reported & XFEATURE_MASK_FPSSE == XFEATURE_MASK_FPSSE


def _kernel_max_features(caps: CpuCaps, rules: KernelRules, reported: int) -> int:
    mask = 0
    for nr in for_each_set_bit(reported):
        flag = _DEPENDS_ON.get(nr)
        if flag is not None and getattr(caps, flag):
            mask |= 1 << nr
    if not caps.XFD:
        mask &= ~XFEATURE_MASK_USER_DYNAMIC
    return mask & (rules.user_supported | (rules.supervisor_supported if caps.XSAVES else 0))


def _state_config(table: ComponentTable, max_features: int, default: int, *, compacted: bool) -> FpuStateConfig:
    return FpuStateConfig(
        max_features=max_features,
        default_features=default,
        max_size=table.calculate_size(max_features, compacted=compacted),
        default_size=table.calculate_size(default, compacted=compacted),
    )


def _without_xsave(profile: CpuidProfile, rules: KernelRules, silicon: Silicon, table: ComponentTable) -> FpuConfig:
    """A host that saves with FXSAVE: 512 bytes, x87 and SSE; the feature masks stay 0, they are XSAVE's.

    Source: arch/x86/kernel/fpu/init.c, fpu__init_system_xstate_size_legacy().
    """
    state = FpuStateConfig(
        max_features=0, default_features=0, max_size=FXSAVE_SIZE_BYTES, default_size=FXSAVE_SIZE_BYTES
    )
    return FpuConfig(
        profile=profile,
        rules=rules,
        silicon=silicon,
        caps=profile.caps,
        table=ComponentTable(table.components, compacted=False),
        kernel=state,
        user=state,
        guest_default_features=0,
        guest_default_size=FXSAVE_SIZE_BYTES,
        legacy_features=XFEATURE_MASK_FPSSE if profile.caps.FXSR else XFEATURE_MASK_FP,
        independent_features=0,
        init_xfd=0,
        xsave=False,
    )
