"""vCPUs, tasks, and the containers of both."""

from __future__ import annotations

from typing import Final

from fpstate.v1 import common_pb2, task_pb2, vcpu_pb2

from fpu_core.fpstate import Fpstate
from fpu_core.permission import get_permitted
from host_agent.guest_events import intercepts
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.vcpu import Vcpu
from host_agent.service.translate.outcome import intercepts_to_proto
from host_agent.state import HostState, TaskRecord, VcpuSide, VmRecord
from host_agent.vcpus import vcpu_etag

VCPU_STATES: Final[dict[VcpuState, vcpu_pb2.VcpuState.ValueType]] = {
    VcpuState.OUTSIDE: vcpu_pb2.VCPU_STATE_OUTSIDE,
    VcpuState.ENTERED: vcpu_pb2.VCPU_STATE_ENTERED,
    VcpuState.PARKED: vcpu_pb2.VCPU_STATE_PARKED,
    VcpuState.PAUSED: vcpu_pb2.VCPU_STATE_PAUSED,
    VcpuState.KILLED: vcpu_pb2.VCPU_STATE_KILLED,
    VcpuState.BROKEN: vcpu_pb2.VCPU_STATE_BROKEN,
}


def vcpu_to_proto(state: HostState, vcpu: Vcpu) -> vcpu_pb2.Vcpu:
    """A vCPU as it is now. Looking changes nothing: what the agent keeps beside a vCPU is made by its first session."""
    side = vcpu.agent if isinstance(vcpu.agent, VcpuSide) else None
    task = side.task if side is not None and side.task else f"vcpu-{vcpu.index}"
    return vcpu_pb2.Vcpu(
        name=state.vcpu_name(vcpu),
        uid=state.vcpu_uid(vcpu),
        incarnation=vcpu.incarnation,
        state=VCPU_STATES[vcpu.state],
        task=f"{vcpu.vm.account.name}/tasks/{task}",
        xcr0=vcpu.xcr0,
        guest_supported_xcr0=vcpu.guest_supported_xcr0,
        xfd=vcpu.fpstate.xfd,
        xfd_err=vcpu.guest.xfd_err,
        fpstate=fpstate_to_proto(vcpu.fpstate),
        intercepts=intercepts_to_proto(intercepts(vcpu)),
        next_seq=side.next_seq if side is not None else 1,
        exit=side.exit.name if side is not None and side.exit is not None else "",
        etag=vcpu_etag(vcpu),
    )


def task_to_proto(state: HostState, vm: VmRecord, task: TaskRecord) -> task_pb2.Task:
    """A task as it is now. Its own container is the parked one while it runs a guest."""
    fpu = task.fpu
    own = fpu.task_fpstate if fpu.task_fpstate is not None else fpu.fpstate
    return task_pb2.Task(
        name=f"{vm.name}/tasks/{task.id}",
        uid=task.uid,
        cpu=fpu.cpu.nr if fpu.cpu is not None else None,
        fpstate=fpstate_to_proto(own),
        perm=get_permitted(fpu, guest=False),
        guest_perm=get_permitted(fpu, guest=True),
        need_load=fpu.need_load,
        running_vcpu=state.vcpu_name(task.vcpu) if task.vcpu is not None else "",
        altstack_bytes=fpu.sas_ss_size,
    )


def fpstate_to_proto(fpstate: Fpstate) -> common_pb2.Fpstate:
    """A container, without its bytes."""
    return common_pb2.Fpstate(
        size_bytes=fpstate.size,
        user_size_bytes=fpstate.user_size,
        xfeatures=fpstate.xfeatures,
        user_xfeatures=fpstate.user_xfeatures,
        xfd=fpstate.xfd,
        in_use=fpstate.in_use,
        confidential=fpstate.is_confidential,
        xstate_bv=fpstate.xstate_bv,
        xcomp_bv=fpstate.xcomp_bv,
    )
