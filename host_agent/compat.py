"""Whether a VM made elsewhere could run here: what it needs, what this host has, and all that stands between.

The host's processor is the one that a VM gets which names none. Names of processors decide nothing, layouts do.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fpu_core.config import FpuConfig, boot
from fpu_core.cpuid import builtin_profile, parse_cpuid_dump
from fpu_core.errors import FieldError
from fpu_core.fpstate import FPSTATE_HEADER_BYTES
from fpu_core.fpu import StatePerm
from fpu_core.layout import Component
from fpu_core.rules import KERNEL_RULES
from fpu_core.xfeature import (
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_USER_DYNAMIC,
    XFEATURE_MASK_XTILE,
    for_each_set_bit,
    format_mask,
)
from host_agent.kvm.caps import kvm_caps
from host_agent.kvm.policy import allocation_policy
from host_agent.state import HostState, VmRecord

#: Versions of the image of a VM that this release reads, the newest last.
FORMAT_VERSIONS: Final = (1,)


class IncompatibilityKind(enum.Enum):
    """What stands against a VM. Names as in protos/fpstate/v1/migration.proto."""

    XFEATURES = enum.auto()
    LAYOUT = enum.auto()
    PERMISSION = enum.auto()
    MEMORY = enum.auto()
    KERNEL_RULES = enum.auto()
    ALLOCATION_POLICY = enum.auto()
    FORMAT_VERSION = enum.auto()
    CPUID = enum.auto()


@dataclass(frozen=True, slots=True)
class XfeatureLayout:
    """Where a component lies in the standard format, in bytes; offset 0 for a supervisor component."""

    xfeature: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRequirements:
    """What a host must have to hold and run a VM. Masks of xfeatures, sizes in bytes.

    ``cpuid_features`` are capabilities that its guests have seen in their CPUID, in the kernel's names.
    """

    profile: str
    xfeatures: int
    dynamic_xfeatures: int
    layouts: tuple[XfeatureLayout, ...]
    container_bytes_max: int
    vcpu_count: int
    kernel_rules: str
    allocation_policy: str
    format_version: int
    cpuid_features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Incompatibility:
    """One thing that stands against it: the field that is not met, the xfeatures concerned, a sentence."""

    kind: IncompatibilityKind
    field: str
    xfeatures: int
    description: str


# -- of a VM -----------------------------------------------------------------------------------------------------------


def requirements_of(vm: VmRecord) -> VmRequirements:
    """What another host must have for ``vm``: for all that its guests were offered, may be permitted, and hold."""
    config = vm.platform.host.config
    xfeatures = guest_xfeatures(vm) & sum(1 << nr for nr in config.table.components)
    vcpus = vm.kvm.vcpus.values()
    features = {name for cpuid in (vm.kvm.cpuid, *(vcpu.cpuid for vcpu in vcpus)) for name in cpuid.features}
    return VmRequirements(
        profile=vm.profile,
        xfeatures=xfeatures,
        dynamic_xfeatures=xfeatures & XFEATURE_MASK_USER_DYNAMIC,
        layouts=tuple(_layout(config.table.components[nr]) for nr in for_each_set_bit(xfeatures)),
        container_bytes_max=len(vcpus) * _allocated(vm.kvm.leader.guest_perm) + _tasks_bytes_max(vm),
        vcpu_count=len(vcpus),
        kernel_rules=vm.kernel_rules,
        allocation_policy=vm.allocation_policy,
        format_version=FORMAT_VERSIONS[-1],
        cpuid_features=tuple(sorted(features)),
    )


def guest_xfeatures(vm: VmRecord) -> int:
    """The components that a guest of ``vm`` could find missing: not what its containers have room for besides."""
    kvm = vm.kvm
    xfeatures = kvm.permitted_xcr0 | kvm.cpuid.supported_xss | XFEATURE_MASK_FPSSE
    xfeatures |= kvm.leader.perm.state_perm & XFEATURE_MASK_USER_DYNAMIC
    for vcpu in kvm.vcpus.values():
        fpstate = vcpu.fpstate
        xfeatures |= vcpu.xcr0 | vcpu.xss | vcpu.cpuid.supported_xss | fpstate.xstate_bv
        xfeatures |= fpstate.xfeatures & XFEATURE_MASK_USER_DYNAMIC
    return xfeatures | (XFEATURE_MASK_XTILE if xfeatures & XFEATURE_MASK_XTILE else 0)


def _layout(component: Component) -> XfeatureLayout:
    return XfeatureLayout(component.nr, component.std_offset or 0, component.size_bytes)


def _tasks_bytes_max(vm: VmRecord) -> int:
    """A task's own container costs the allocator only once it has grown."""
    perm = vm.kvm.leader.perm
    return len(vm.tasks) * _allocated(perm) if perm.state_perm & XFEATURE_MASK_USER_DYNAMIC else 0


def _allocated(perm: StatePerm) -> int:
    return perm.state_size + FPSTATE_HEADER_BYTES


# -- against a host ----------------------------------------------------------------------------------------------------


def check_compat(state: HostState, needed: VmRequirements) -> list[Incompatibility]:
    """Everything that stands against running such a VM here; empty if nothing does. Changes nothing.

    Raises ``FieldError`` for requirements that contradict themselves.
    """
    _check_consistent(needed)
    config = _host_config(state, needed.kernel_rules)
    found = [*_xfeatures(config, needed), *_layouts(config, needed), *_permission(needed), *_memory(state, needed)]
    if needed.kernel_rules not in KERNEL_RULES:
        known = ", ".join(KERNEL_RULES)
        found.append(_wants(IncompatibilityKind.KERNEL_RULES, "kernel_rules", needed.kernel_rules, known))
    try:
        allocation_policy(needed.allocation_policy)
    except FieldError as error:
        kind = IncompatibilityKind.ALLOCATION_POLICY
        found.append(_wants(kind, "allocation_policy", needed.allocation_policy, error.expected))
    found += _cpuid(config, needed)
    if needed.format_version not in FORMAT_VERSIONS:
        readable = ", ".join(map(str, FORMAT_VERSIONS))
        found.append(_wants(IncompatibilityKind.FORMAT_VERSION, "format_version", needed.format_version, readable))
    return found


def _wants(kind: IncompatibilityKind, field: str, wanted: object, known: str) -> Incompatibility:
    return Incompatibility(kind, field, 0, f"{field}: the VM wants {wanted}, this host has {known}")


def _host_config(state: HostState, kernel_rules: str) -> FpuConfig:
    """The host's own processor, under the VM's kernel where the host speaks that one."""
    chosen = state.config
    dump = chosen.default_cpuid_dump
    profile = parse_cpuid_dump(dump, name="dump") if dump else builtin_profile(chosen.default_profile)
    return boot(profile, KERNEL_RULES.get(kernel_rules, KERNEL_RULES[chosen.default_kernel_rules]))


def _xfeatures(config: FpuConfig, needed: VmRequirements) -> Iterator[Incompatibility]:
    missing = needed.xfeatures & ~config.kernel.max_features
    if missing:
        text = f"the VM needs {format_mask(missing)}, which this host's processor or kernel lacks"
        yield Incompatibility(IncompatibilityKind.XFEATURES, "xfeatures", missing, text)


def _layouts(config: FpuConfig, needed: VmRequirements) -> Iterator[Incompatibility]:
    for index, layout in enumerate(needed.layouts):
        if not config.kernel.max_features >> layout.xfeature & 1:
            continue  # said already
        ours = _layout(config.table.components[layout.xfeature])
        for field in ("offset", "size"):
            wanted, has = getattr(layout, field), getattr(ours, field)
            if wanted != has:
                name = format_mask(1 << layout.xfeature)
                text = f"{name}: the VM has {field} {wanted}, this host {has}"
                path = f"layouts[{index}].{field}"
                yield Incompatibility(IncompatibilityKind.LAYOUT, path, 1 << layout.xfeature, text)


def _permission(needed: VmRequirements) -> Iterator[Incompatibility]:
    """A process asks anew on this host; what arch_prctl knows no permission for, it cannot get."""
    refused = needed.dynamic_xfeatures & ~XFEATURE_MASK_USER_DYNAMIC
    if refused:
        text = f"no process can be permitted {format_mask(refused)} here"
        yield Incompatibility(IncompatibilityKind.PERMISSION, "dynamic_xfeatures", refused, text)


def _memory(state: HostState, needed: VmRequirements) -> Iterator[Incompatibility]:
    host = state.allocator.host
    if host.refuses(needed.container_bytes_max):
        free = max(0, (host.limit_bytes or 0) - host.used_bytes)
        text = f"the containers may take {needed.container_bytes_max} bytes, {free} are free under this host's limit"
        yield Incompatibility(IncompatibilityKind.MEMORY, "container_bytes_max", 0, text)


def _cpuid(config: FpuConfig, needed: VmRequirements) -> Iterator[Incompatibility]:
    """A guest looks at its CPUID once, and goes on believing it."""
    missing = [name for name in needed.cpuid_features if name not in kvm_caps(config).features]
    if missing:
        text = f"the guests' CPUID has {', '.join(missing)}, which KVM lacks on this host"
        yield Incompatibility(IncompatibilityKind.CPUID, "cpuid_features", 0, text)


def _check_consistent(needed: VmRequirements) -> None:
    if needed.dynamic_xfeatures & ~needed.xfeatures:
        raise FieldError(
            "requirements.dynamic_xfeatures",
            f"a subset of xfeatures {needed.xfeatures:#x}",
            hex(needed.dynamic_xfeatures),
        )
    listed = [layout.xfeature for layout in needed.layouts]
    expected = list(for_each_set_bit(needed.xfeatures))
    if listed != expected:
        raise FieldError("requirements.layouts", f"one for each of xfeatures, ascending: {expected}", listed)
    for index, layout in enumerate(needed.layouts):
        if layout.size < 1:
            raise FieldError(f"requirements.layouts[{index}].size", "1 or more bytes", layout.size)
    if needed.vcpu_count < 1:
        raise FieldError("requirements.vcpu_count", "1 or more", needed.vcpu_count)
    if needed.format_version < 1:
        raise FieldError("requirements.format_version", "1 or more", needed.format_version)
