"""VMs."""

from __future__ import annotations

from typing import Final

from fpstate.v1 import vm_pb2

from fpu_core.permission import get_permitted
from host_agent.commands import CreateVm, UpdateVm
from host_agent.service.errors import field_invalid
from host_agent.service.translate.fields import enum_name, labels, paths, request_id, text, vm_name
from host_agent.state import VmRecord
from host_agent.vms import vm_etag

POLICIES: Final[dict[int, str]] = {
    vm_pb2.ALLOCATION_POLICY_UNSPECIFIED: "on_swap",
    vm_pb2.ALLOCATION_POLICY_ON_SWAP: "on_swap",
    vm_pb2.ALLOCATION_POLICY_ON_WRITE: "on_write",
    vm_pb2.ALLOCATION_POLICY_ON_CPUID: "on_cpuid",
    vm_pb2.ALLOCATION_POLICY_THREE_BUFFER: "three_buffer",
}
#: The other way round; ON_SWAP is said, never left out.
POLICY_VALUES: Final[dict[str, vm_pb2.AllocationPolicy.ValueType]] = {
    "on_swap": vm_pb2.ALLOCATION_POLICY_ON_SWAP,
    "on_write": vm_pb2.ALLOCATION_POLICY_ON_WRITE,
    "on_cpuid": vm_pb2.ALLOCATION_POLICY_ON_CPUID,
    "three_buffer": vm_pb2.ALLOCATION_POLICY_THREE_BUFFER,
}
_DUMP_MAX: Final = 64 * 1024
_PID_MAX: Final = 4_194_304
_CPUID_ENTRIES_MAX: Final = 256
#: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, in the kernel's spelling. Source: arch/x86/include/uapi/asm/kvm.h.
_INDEX_SIGNIFICANT: Final = 1
_UPDATABLE: Final = ("byte_limit", "owner", "labels")


def create_vm_from_proto(request: vm_pb2.CreateVmRequest) -> CreateVm:
    """Read CreateVmRequest; what is output only in the VM is not looked at."""
    vm = request.vm
    if vm.name:
        raise field_invalid("vm.name", "nothing: the name is made from vm_id", vm.name)
    _check_owner(vm)
    return CreateVm(
        vm_id=request.vm_id,
        profile=text("vm.profile", vm.profile, longest=128),
        cpuid_dump=text("vm.cpuid_dump", vm.cpuid_dump, longest=_DUMP_MAX),
        kernel_rules=text("vm.kernel_rules", vm.kernel_rules, longest=128),
        allocation_policy=enum_name("vm.allocation_policy", POLICIES, vm.allocation_policy),
        byte_limit=_byte_limit(vm),
        owner_pid=vm.owner.pid,
        owner_name=vm.owner.name,
        labels=labels("vm.labels", vm.labels),
        request_id=request_id(request.request_id),
    )


def update_vm_from_proto(request: vm_pb2.UpdateVmRequest) -> UpdateVm:
    """Read UpdateVmRequest: a field that the mask names and the VM lacks is cleared."""
    _check_owner(request.vm)
    return UpdateVm(
        vm=vm_name("vm.name", request.vm.name),
        fields=paths("update_mask", request.update_mask, _UPDATABLE),
        byte_limit=_byte_limit(request.vm),
        owner_pid=request.vm.owner.pid,
        owner_name=request.vm.owner.name,
        labels=labels("vm.labels", request.vm.labels),
        etag=request.vm.etag,
        request_id=request_id(request.request_id),
    )


def _byte_limit(vm: vm_pb2.Vm) -> int | None:
    return vm.byte_limit if vm.HasField("byte_limit") else None


def _check_owner(vm: vm_pb2.Vm) -> None:
    if vm.owner.pid > _PID_MAX:
        raise field_invalid("vm.owner.pid", f"1..{_PID_MAX}, 0 if unknown", vm.owner.pid)
    text("vm.owner.name", vm.owner.name, longest=128)


def xcr0_mask_from_proto(request: vm_pb2.SetCpuidRequest, vm: VmRecord) -> int:
    """What the guests are to see as CPUID.0xD.0 EDX:EAX: as a mask, or out of a table.

    From a table, KVM takes what it supports and no error is made of the rest; a leaf that is missing reads as zero.
    Source: arch/x86/kvm/cpuid.c, kvm_vcpu_after_set_cpuid().
    """
    match request.WhichOneof("cpuid"):
        case "xcr0_mask":
            return request.xcr0_mask
        case "table":
            return _leaf_0xd(request.table) & vm.kvm.supported_xcr0
        case None:
            raise field_invalid("cpuid", "xcr0_mask or table", "none")


def _leaf_0xd(table: vm_pb2.CpuidTable) -> int:
    entries = table.entries
    if len(entries) > _CPUID_ENTRIES_MAX:
        raise field_invalid("table.entries", f"at most {_CPUID_ENTRIES_MAX} entries", len(entries))
    seen: dict[tuple[int, int], int] = {}
    for nr, entry in enumerate(entries):
        key = (entry.function, entry.index if entry.flags & _INDEX_SIGNIFICANT else 0)
        if key in seen:
            raise field_invalid(f"table.entries[{nr}]", "each function and index once", f"{key[0]:#x}.{key[1]}")
        seen[key] = entry.edx << 32 | entry.eax
    return seen.get((0xD, 0), 0)


def vm_to_proto(vm: VmRecord) -> vm_pb2.Vm:
    """A VM as it is now."""
    account = vm.kvm.account
    return vm_pb2.Vm(
        name=vm.name,
        uid=vm.uid,
        profile=vm.profile,
        cpuid_dump=vm.cpuid_dump,
        kernel_rules=vm.kernel_rules,
        allocation_policy=POLICY_VALUES[vm.allocation_policy],
        byte_limit=account.limit_bytes,
        bytes_used=account.used_bytes,
        owner=vm_pb2.Owner(pid=vm.owner_pid, name=vm.owner_name),
        labels=vm.labels,
        guest_supported_xcr0=vm.kvm.guest_supported_xcr0,
        guest_perm=get_permitted(vm.kvm.leader, guest=True),
        etag=vm_etag(vm),
    )
