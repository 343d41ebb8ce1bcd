"""VcpuService: make, look at, delete. The calls on a vCPU's state are not in this release (``unbuilt.UNBUILT``)."""

from __future__ import annotations

from fpstate.v1 import vcpu_pb2, vcpu_pb2_grpc

from host_agent.commands import CreateVcpu, DeleteVcpu
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.vcpu import Vcpu
from host_agent.service.agent import HostAgent
from host_agent.service.errors import Failure
from host_agent.service.interceptor import Context
from host_agent.service.paging import page
from host_agent.service.translate.fields import header, request_id, task_id_in, vcpu_name, vm_name
from host_agent.service.translate.vcpu import vcpu_to_proto
from host_agent.vcpus import vcpu_etag


class VcpuService(vcpu_pb2_grpc.VcpuServiceServicer):
    """vCPUs."""

    def __init__(self, agent: HostAgent) -> None:
        self._agent = agent

    async def CreateVcpu(self, request: vcpu_pb2.CreateVcpuRequest, context: Context) -> vcpu_pb2.CreateVcpuResponse:
        """KVM_CREATE_VCPU."""
        vm = vm_name("parent", request.parent)
        command = CreateVcpu(
            vm=vm,
            index=request.index,
            task=task_id_in("task", vm, request.task),
            request_id=request_id(request.request_id),
        )
        vcpu: Vcpu = self._agent.submit(command)
        state = self._agent.state
        return vcpu_pb2.CreateVcpuResponse(header=header(state), vcpu=vcpu_to_proto(state, vcpu))

    async def GetVcpu(self, request: vcpu_pb2.GetVcpuRequest, context: Context) -> vcpu_pb2.GetVcpuResponse:
        """Return one vCPU."""
        state = self._agent.state
        vcpu = state.vcpu(vcpu_name("name", request.name))
        return vcpu_pb2.GetVcpuResponse(header=header(state), vcpu=vcpu_to_proto(state, vcpu))

    async def ListVcpus(self, request: vcpu_pb2.ListVcpusRequest, context: Context) -> vcpu_pb2.ListVcpusResponse:
        """List the vCPUs of a VM by index."""
        state = self._agent.state
        vm = state.vm(vm_name("parent", request.parent))
        vcpus, token = page(
            vm.kvm.vcpus.values(), lambda vcpu: (vcpu.index,), size=request.page_size, token=request.page_token
        )
        return vcpu_pb2.ListVcpusResponse(
            header=header(state), vcpus=[vcpu_to_proto(state, vcpu) for vcpu in vcpus], next_page_token=token
        )

    async def DeleteVcpu(self, request: vcpu_pb2.DeleteVcpuRequest, context: Context) -> vcpu_pb2.DeleteVcpuResponse:
        """Delete a vCPU that is outside the guest."""
        command = DeleteVcpu(vcpu=vcpu_name("name", request.name), request_id=request_id(request.request_id))
        if not self._agent.answered(command.request_id):
            _check_deletable(self._agent.state.vcpu(command.vcpu), request)
        self._agent.submit(command)
        return vcpu_pb2.DeleteVcpuResponse(header=header(self._agent.state))


def _check_deletable(vcpu: Vcpu, request: vcpu_pb2.DeleteVcpuRequest) -> None:
    if request.etag and request.etag != vcpu_etag(vcpu):
        text = f"{request.name} has changed"
        raise Failure.because("ETAG_MISMATCH", text, name=request.name, etag=vcpu_etag(vcpu))
    if vcpu.state is VcpuState.ENTERED:
        text = f"{request.name} is in the guest, and a container in use is not freed"
        raise Failure.because("VCPU_ALREADY_ENTERED", text, vcpu=request.name)
