"""vCPUs: create, remove, stop, and the tag that says whether one has changed."""

from __future__ import annotations

import hashlib

from fpu_core.alloc import AllocFailure
from fpu_core.errors import Errno
from host_agent.commands import CreateVcpu, DeleteVcpu
from host_agent.directives import finish_pending, issue_directive
from host_agent.errors import Reason, Refused, invalid, kvm_errno, no_memory, out_of_memory
from host_agent.events import Directive, GoneOutcome
from host_agent.exit_desk import cancel_exit
from host_agent.exits import ExitResult
from host_agent.kvm.lifecycle import VcpuEvent, VcpuState
from host_agent.kvm.vcpu import Vcpu, create_vcpu, destroy_vcpu
from host_agent.state import HostState, VcpuSide
from host_agent.tasks import leave_guest


def create(state: HostState, command: CreateVcpu) -> Vcpu:
    """KVM_CREATE_VCPU. An allocation that fails is the caller's to handle, at once: no exit is opened for it.

    A CPUID that was set for the whole VM is this vCPU's too; where that cannot be had, there is no vCPU.
    """
    vm = state.vm(command.vm)
    name = f"{vm.name}/vcpus/{command.index}"
    if command.index < 0 or command.index >= state.config.max_vcpus_per_vm:
        raise invalid("index", f"0..{state.config.max_vcpus_per_vm - 1}", command.index)
    if command.index in vm.kvm.vcpus:
        raise Refused(Reason.VCPU_EXISTS, f"vCPU {name!r} exists", vcpu=name)
    if state.draining:
        raise Refused(Reason.HOST_DRAINING, "the host is draining and takes no new vCPU")
    if command.task:
        state.task(f"{vm.name}/tasks/{command.task}")
    state.act_for(vm.name, name)
    if state.fault_errno("kvm.vcpu.alloc"):
        raise out_of_memory(f"vCPU {name!r}", name)
    state.serial += 1
    created = create_vcpu(vm.kvm, command.index, serial=state.serial, confidential=command.confidential)
    if isinstance(created, AllocFailure):
        raise no_memory(f"the container of {name!r}", created, name)
    if isinstance(created, Errno):
        raise kvm_errno(created, "KVM_SET_CPUID2")
    if command.task:
        state.side(created).task = command.task
    return created


def delete(state: HostState, command: DeleteVcpu) -> None:
    """KVM destroys the vCPU: whatever was pending is gone, the container is given back."""
    remove_vcpu(state, state.vcpu(command.vcpu), "the vCPU was deleted")


def remove_vcpu(state: HostState, vcpu: Vcpu, why: str) -> None:
    """Stop a vCPU for good and take it out of the books."""
    stop_vcpu(state, vcpu, why, ExitResult.DELETED)
    side = vcpu.agent
    if isinstance(side, VcpuSide) and side.session is not None:
        side.session.vcpus.pop(state.vcpu_name(vcpu), None)
    destroy_vcpu(vcpu)


def stop_vcpu(state: HostState, vcpu: Vcpu, why: str, result: ExitResult) -> Directive:
    """KILL: it leaves the guest if it is there, its exit is cancelled, its pending event is gone; its VMM is told."""
    directive = issue_directive(state, vcpu, "STOP", why)
    cancel_exit(state, vcpu, directive, why, result)
    if vcpu.state is VcpuState.ENTERED:
        leave_guest(state.vms[vcpu.vm.account.name], vcpu)
    vcpu.move(VcpuEvent.KILL)
    if vcpu.agent is not None:
        finish_pending(state, vcpu, GoneOutcome(directive))
    return directive


def vcpu_etag(vcpu: Vcpu) -> str:
    """A tag over everything a reader of the vCPU sees."""
    side = vcpu.agent
    seq = side.next_seq if isinstance(side, VcpuSide) else 1
    fpstate = vcpu.fpstate
    seen = (vcpu.state.name, vcpu.xcr0, vcpu.xss, fpstate.xfd, vcpu.guest.xfd_err, fpstate.size, vcpu.incarnation, seq)
    return '"' + hashlib.sha256(repr(seen).encode()).hexdigest()[:16] + '"'
