"""VcpuService: make, look at, delete; the state of a vCPU out and in, as KVM's ioctls have it."""

from __future__ import annotations

from typing import Final

from fpstate.v1 import common_pb2, vcpu_pb2, vcpu_pb2_grpc

from host_agent.commands import CreateVcpu, DeleteVcpu, SetMsrs, SetXcrs, SetXsave
from host_agent.events import Growth
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.vcpu import Vcpu
from host_agent.service.agent import HostAgent
from host_agent.service.errors import Failure, field_invalid
from host_agent.service.layers import Context
from host_agent.service.limits import XSAVE_BYTES_MAX
from host_agent.service.paging import page
from host_agent.service.translate.fields import enum_name, header, request_id, task_id_in, vcpu_name, vm_name
from host_agent.service.translate.outcome import growth_to_proto
from host_agent.service.translate.vcpu import vcpu_to_proto
from host_agent.vcpu_state import MsrsReply, get_msrs, get_xcrs, get_xsave, get_xsave2
from host_agent.vcpus import vcpu_etag

_XSAVE_IOCTLS: Final[dict[int, str]] = {
    vcpu_pb2.XSAVE_IOCTL_UNSPECIFIED: "GET_XSAVE2",
    vcpu_pb2.XSAVE_IOCTL_GET_XSAVE: "GET_XSAVE",
    vcpu_pb2.XSAVE_IOCTL_GET_XSAVE2: "GET_XSAVE2",
}


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
            confidential=request.confidential,
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
        self._agent.history.wanted()
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

    async def GetXsave(self, request: vcpu_pb2.GetXsaveRequest, context: Context) -> vcpu_pb2.GetXsaveResponse:
        """KVM_GET_XSAVE or KVM_GET_XSAVE2."""
        state = self._agent.state
        read = get_xsave if enum_name("ioctl", _XSAVE_IOCTLS, request.ioctl) == "GET_XSAVE" else get_xsave2
        xsave = read(state, vcpu_name("name", request.name))
        return vcpu_pb2.GetXsaveResponse(header=header(state), xsave=xsave)

    async def SetXsave(self, request: vcpu_pb2.SetXsaveRequest, context: Context) -> vcpu_pb2.SetXsaveResponse:
        """KVM_SET_XSAVE."""
        name, repeated = vcpu_name("name", request.name), request_id(request.request_id)
        if len(request.xsave) > XSAVE_BYTES_MAX:
            raise field_invalid("xsave", f"at most {XSAVE_BYTES_MAX} bytes", len(request.xsave))
        grown: Growth | None = self._agent.submit(SetXsave(vcpu=name, xsave=request.xsave, request_id=repeated))
        return vcpu_pb2.SetXsaveResponse(header=header(self._agent.state), reallocated=_reallocation(grown))

    async def GetXcrs(self, request: vcpu_pb2.GetXcrsRequest, context: Context) -> vcpu_pb2.GetXcrsResponse:
        """KVM_GET_XCRS."""
        state = self._agent.state
        xcrs = [vcpu_pb2.Xcr(xcr=nr, value=value) for nr, value in get_xcrs(state, vcpu_name("name", request.name))]
        return vcpu_pb2.GetXcrsResponse(header=header(state), xcrs=xcrs)

    async def SetXcrs(self, request: vcpu_pb2.SetXcrsRequest, context: Context) -> vcpu_pb2.SetXcrsResponse:
        """KVM_SET_XCRS."""
        command = SetXcrs(
            vcpu=vcpu_name("name", request.name),
            xcrs=tuple((entry.xcr, entry.value) for entry in request.xcrs),
            flags=request.flags,
            request_id=request_id(request.request_id),
        )
        grown: Growth | None = self._agent.submit(command)
        return vcpu_pb2.SetXcrsResponse(header=header(self._agent.state), reallocated=_reallocation(grown))

    async def GetMsrs(self, request: vcpu_pb2.GetMsrsRequest, context: Context) -> vcpu_pb2.GetMsrsResponse:
        """KVM_GET_MSRS."""
        state = self._agent.state
        read = get_msrs(state, vcpu_name("name", request.name), tuple(request.indices))
        entries = [vcpu_pb2.MsrEntry(index=entry.index, value=entry.value) for entry in read]
        return vcpu_pb2.GetMsrsResponse(header=header(state), entries=entries)

    async def SetMsrs(self, request: vcpu_pb2.SetMsrsRequest, context: Context) -> vcpu_pb2.SetMsrsResponse:
        """KVM_SET_MSRS."""
        command = SetMsrs(
            vcpu=vcpu_name("name", request.name),
            entries=tuple((entry.index, entry.value) for entry in request.entries),
            request_id=request_id(request.request_id),
        )
        done: MsrsReply = self._agent.submit(command)
        return vcpu_pb2.SetMsrsResponse(
            header=header(self._agent.state),
            processed=done.processed,
            reallocated=_reallocation(done.reallocated),
        )


def _reallocation(grown: Growth | None) -> common_pb2.Reallocation | None:
    return growth_to_proto(grown) if grown is not None else None


def _check_deletable(vcpu: Vcpu, request: vcpu_pb2.DeleteVcpuRequest) -> None:
    if request.etag and request.etag != vcpu_etag(vcpu):
        text = f"{request.name} has changed"
        raise Failure.because("ETAG_MISMATCH", text, name=request.name, etag=vcpu_etag(vcpu))
    if vcpu.state is VcpuState.ENTERED:
        text = f"{request.name} is in the guest, and a container in use is not freed"
        raise Failure.because("VCPU_ALREADY_ENTERED", text, vcpu=request.name)
