"""VMs."""

from __future__ import annotations

import dataclasses
from typing import Final

from fpstate.v1 import vm_pb2

from fpu_core.permission import get_permitted
from host_agent.commands import CreateVm, SetCpuid, UpdateVm
from host_agent.kvm.cpuid import CpuidEntry, CpuidTable
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
        has_protected_state=vm.has_protected_state,
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


def set_cpuid_from_proto(request: vm_pb2.SetCpuidRequest, vcpu: str) -> SetCpuid:
    """Read SetCpuidRequest: a mask, or a table as KVM_SET_CPUID2 takes it."""
    name, again = vm_name("name", request.name), request_id(request.request_id)
    match request.WhichOneof("cpuid"):
        case "xcr0_mask":
            return SetCpuid(vm=name, vcpu=vcpu, xcr0_mask=request.xcr0_mask, request_id=again)
        case "table":
            table = tuple(cpuid_entry_from_proto(entry) for entry in request.table.entries)
            return SetCpuid(vm=name, vcpu=vcpu, table=table, request_id=again)
        case None:
            raise field_invalid("cpuid", "xcr0_mask or table", "none")


def cpuid_entry_from_proto(entry: vm_pb2.CpuidEntry) -> CpuidEntry:
    """Read one entry."""
    return CpuidEntry(
        function=entry.function,
        index=entry.index,
        flags=entry.flags,
        eax=entry.eax,
        ebx=entry.ebx,
        ecx=entry.ecx,
        edx=entry.edx,
    )


def cpuid_table_to_proto(table: CpuidTable) -> vm_pb2.CpuidTable:
    """A table as KVM_GET_SUPPORTED_CPUID gives it."""
    return vm_pb2.CpuidTable(entries=[vm_pb2.CpuidEntry(**dataclasses.asdict(entry)) for entry in table])


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
        has_protected_state=vm.kvm.has_protected_state,
        hidden_at_reset=vm.hidden_at_reset,
    )
