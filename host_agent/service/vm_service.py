"""VmService."""

from __future__ import annotations

from typing import Final

from fpstate.v1 import vm_pb2, vm_pb2_grpc

from fpu_core.permission import get_permitted, get_supported, guest_perm_locked
from host_agent.commands import DeleteVm, RequestPermission, ResetVm
from host_agent.service.agent import HostAgent
from host_agent.service.errors import Failure, field_invalid
from host_agent.service.layers import Context
from host_agent.service.paging import page
from host_agent.service.translate.fields import enum_name, header, request_id, vcpu_name, vm_name
from host_agent.service.translate.vm import (
    cpuid_table_to_proto,
    create_vm_from_proto,
    set_cpuid_from_proto,
    update_vm_from_proto,
    vm_to_proto,
)
from host_agent.state import VmRecord
from host_agent.vms import get_supported_cpuid, required_size, vm_etag

_SCOPES: Final[dict[int, str]] = {vm_pb2.PERMISSION_SCOPE_HOST: "HOST", vm_pb2.PERMISSION_SCOPE_GUEST: "GUEST"}


class VmService(vm_pb2_grpc.VmServiceServicer):
    """Virtual machines."""

    def __init__(self, agent: HostAgent) -> None:
        self._agent = agent

    async def CreateVm(self, request: vm_pb2.CreateVmRequest, context: Context) -> vm_pb2.CreateVmResponse:
        """Make a VM without vCPUs."""
        vm: VmRecord = self._agent.submit(create_vm_from_proto(request))
        return vm_pb2.CreateVmResponse(header=header(self._agent.state), vm=vm_to_proto(vm))

    async def GetVm(self, request: vm_pb2.GetVmRequest, context: Context) -> vm_pb2.GetVmResponse:
        """Return one VM."""
        vm = self._agent.state.vm(vm_name("name", request.name))
        return vm_pb2.GetVmResponse(header=header(self._agent.state), vm=vm_to_proto(vm))

    async def ListVms(self, request: vm_pb2.ListVmsRequest, context: Context) -> vm_pb2.ListVmsResponse:
        """List VMs by name."""
        state = self._agent.state
        vms, token = page(state.vms.values(), lambda vm: (vm.name,), size=request.page_size, token=request.page_token)
        self._agent.history.wanted()
        return vm_pb2.ListVmsResponse(header=header(state), vms=[vm_to_proto(vm) for vm in vms], next_page_token=token)

    async def UpdateVm(self, request: vm_pb2.UpdateVmRequest, context: Context) -> vm_pb2.UpdateVmResponse:
        """Change what the mask names."""
        vm: VmRecord = self._agent.submit(update_vm_from_proto(request))
        return vm_pb2.UpdateVmResponse(header=header(self._agent.state), vm=vm_to_proto(vm))

    async def DeleteVm(self, request: vm_pb2.DeleteVmRequest, context: Context) -> vm_pb2.DeleteVmResponse:
        """Delete a VM; one with vCPUs only by force."""
        command = DeleteVm(
            vm=vm_name("name", request.name), force=request.force, request_id=request_id(request.request_id)
        )
        if request.etag and not self._agent.answered(command.request_id):
            _check_etag(self._agent.state.vm(command.vm), request.etag)
        self._agent.submit(command)
        return vm_pb2.DeleteVmResponse(header=header(self._agent.state))

    async def ResetVm(self, request: vm_pb2.ResetVmRequest, context: Context) -> vm_pb2.ResetVmResponse:
        """RESET every vCPU."""
        command = ResetVm(vm=vm_name("name", request.name), request_id=request_id(request.request_id))
        vm: VmRecord = self._agent.submit(command)
        return vm_pb2.ResetVmResponse(header=header(self._agent.state), vm=vm_to_proto(vm))

    async def RequestPermission(
        self, request: vm_pb2.RequestPermissionRequest, context: Context
    ) -> vm_pb2.RequestPermissionResponse:
        """arch_prctl of the VMM's process."""
        command = RequestPermission(
            vm=vm_name("name", request.name),
            feature=request.feature,
            guest=enum_name("scope", _SCOPES, request.scope) == "GUEST",
            request_id=request_id(request.request_id),
        )
        permitted: int = self._agent.submit(command)
        return vm_pb2.RequestPermissionResponse(header=header(self._agent.state), permitted=permitted)

    async def GetPermission(
        self, request: vm_pb2.GetPermissionRequest, context: Context
    ) -> vm_pb2.GetPermissionResponse:
        """What could be permitted and what is."""
        state = self._agent.state
        leader = state.vm(vm_name("name", request.name)).kvm.leader
        guest = enum_name("scope", _SCOPES, request.scope) == "GUEST"
        return vm_pb2.GetPermissionResponse(
            header=header(state),
            supported=get_supported(leader),
            permitted=get_permitted(leader, guest=guest),
            locked=guest and guest_perm_locked(leader),
        )

    async def SetCpuid(self, request: vm_pb2.SetCpuidRequest, context: Context) -> vm_pb2.SetCpuidResponse:
        """KVM_SET_CPUID2 of one vCPU, or of every one, now and later."""
        state = self._agent.state
        vm = state.vm(vm_name("name", request.name))
        vcpu = vcpu_name("vcpu", request.vcpu) if request.vcpu else ""
        if vcpu and not vcpu.startswith(f"{vm.name}/"):
            raise field_invalid("vcpu", f"a vCPU of {vm.name}", vcpu)
        self._agent.submit(set_cpuid_from_proto(request, vcpu))
        supported = state.vcpu(vcpu).guest_supported_xcr0 if vcpu else vm.kvm.guest_supported_xcr0
        return vm_pb2.SetCpuidResponse(header=header(state), guest_supported_xcr0=supported)

    async def GetSupportedCpuid(
        self, request: vm_pb2.GetSupportedCpuidRequest, context: Context
    ) -> vm_pb2.GetSupportedCpuidResponse:
        """KVM_GET_SUPPORTED_CPUID and KVM_X86_XCOMP_GUEST_SUPP."""
        state, name = self._agent.state, vm_name("name", request.name)
        return vm_pb2.GetSupportedCpuidResponse(
            header=header(state),
            cpuid=cpuid_table_to_proto(get_supported_cpuid(state, name)),
            xcomp_guest_supp=state.vm(name).kvm.supported_xcr0,
        )

    async def GetRequiredSize(
        self, request: vm_pb2.GetRequiredSizeRequest, context: Context
    ) -> vm_pb2.GetRequiredSizeResponse:
        """KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2)."""
        size_bytes = required_size(self._agent.state, vm_name("name", request.name))
        return vm_pb2.GetRequiredSizeResponse(header=header(self._agent.state), bytes=size_bytes)


def _check_etag(vm: VmRecord, etag: str) -> None:
    if etag != vm_etag(vm):
        raise Failure.because("ETAG_MISMATCH", f"{vm.name} has changed", name=vm.name, etag=vm_etag(vm))
