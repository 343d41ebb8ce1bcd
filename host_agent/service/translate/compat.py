"""What a VM needs of a host, and what stands against it."""

from __future__ import annotations

from typing import Final

from fpstate.v1 import migration_pb2

from host_agent.compat import Incompatibility, IncompatibilityKind, VmRequirements, XfeatureLayout
from host_agent.service.errors import field_invalid
from host_agent.service.translate.fields import text
from host_agent.service.translate.vm import POLICY_VALUES

_KINDS: Final[dict[IncompatibilityKind, migration_pb2.IncompatibilityKind.ValueType]] = {
    kind: migration_pb2.IncompatibilityKind.Value(f"INCOMPATIBILITY_KIND_{kind.name}") for kind in IncompatibilityKind
}
_POLICY_NAMES: Final[dict[int, str]] = {value: name for name, value in POLICY_VALUES.items()}


def requirements_from_proto(message: migration_pb2.VmRequirements) -> VmRequirements:
    """Read VmRequirements. A policy that this release has no name for is said by its number: it is not met."""
    if not message.allocation_policy:
        raise field_invalid("requirements.allocation_policy", "a policy", "unspecified")
    return VmRequirements(
        profile=text("requirements.profile", message.profile, longest=128),
        xfeatures=message.xfeatures,
        dynamic_xfeatures=message.dynamic_xfeatures,
        layouts=tuple(XfeatureLayout(each.xfeature, each.offset, each.size) for each in message.layouts),
        container_bytes_max=message.container_bytes_max,
        vcpu_count=message.vcpu_count,
        kernel_rules=text("requirements.kernel_rules", message.kernel_rules, longest=128, required=True),
        allocation_policy=_POLICY_NAMES.get(message.allocation_policy, str(message.allocation_policy)),
        format_version=message.format_version,
        cpuid_features=tuple(message.cpuid_features),
    )


def requirements_to_proto(needed: VmRequirements) -> migration_pb2.VmRequirements:
    """VmRequirements as a host writes them down for another."""
    return migration_pb2.VmRequirements(
        profile=needed.profile,
        xfeatures=needed.xfeatures,
        dynamic_xfeatures=needed.dynamic_xfeatures,
        layouts=[
            migration_pb2.XfeatureLayout(xfeature=each.xfeature, offset=each.offset, size=each.size)
            for each in needed.layouts
        ],
        container_bytes_max=needed.container_bytes_max,
        vcpu_count=needed.vcpu_count,
        kernel_rules=needed.kernel_rules,
        allocation_policy=POLICY_VALUES[needed.allocation_policy],
        format_version=needed.format_version,
        cpuid_features=needed.cpuid_features,
    )


def incompatibility_to_proto(found: Incompatibility) -> migration_pb2.Incompatibility:
    """One thing that stands against a VM."""
    return migration_pb2.Incompatibility(
        kind=_KINDS[found.kind], field=found.field, xfeatures=found.xfeatures, description=found.description
    )
