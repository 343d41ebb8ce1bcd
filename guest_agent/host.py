"""The calls around a session, blocking: VMs, vCPUs and their state, permissions, exits, faults.

Thin on purpose: answers are the contract's own messages, refusals are `HostError`. Every call that changes something
carries a request_id, its own unless one is given, so that gRPC's retry can not do it twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc
from fpstate.v1 import (
    exit_pb2,
    exit_pb2_grpc,
    host_pb2,
    host_pb2_grpc,
    migration_pb2,
    migration_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
    vcpu_pb2,
    vcpu_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
)

from fpstated.link.tls import ClientTls
from fpstated.link.trace import trace_metadata
from guest_agent import request
from guest_agent.channel import connect
from guest_agent.error import host_error
from guest_agent.request import FaultOptions, VmOptions

CALL_TIMEOUT_S = 10.0

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Host:
    """A host at an address (`unix:PATH`, `HOST:PORT`) or on a channel of the caller's; a context manager.

    `channel` is the connection, for a session beside these calls; `address` is where it goes, empty for a channel of
    the caller's. Every call raises HostError where the host refuses it or is not reached within `timeout_s` seconds.
    `tls` is for an address with mutual TLS.
    """

    def __init__(
        self, host: str | grpc.Channel, *, tls: ClientTls | None = None, timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        self._owns_channel = isinstance(host, str)
        self.address = host if isinstance(host, str) else ""
        self._timeout_s = timeout_s
        self.channel = connect(host, tls) if isinstance(host, str) else host
        self._hosts = host_pb2_grpc.HostServiceStub(self.channel)
        self._vms = vm_pb2_grpc.VmServiceStub(self.channel)
        self._tasks = task_pb2_grpc.TaskServiceStub(self.channel)
        self._vcpus = vcpu_pb2_grpc.VcpuServiceStub(self.channel)
        self._exits = exit_pb2_grpc.ExitServiceStub(self.channel)
        self._migrations = migration_pb2_grpc.MigrationServiceStub(self.channel)
        self._faults = fault_pb2_grpc.FaultServiceStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, unless it is the caller's."""
        if self._owns_channel:
            self.channel.close()

    def info(self) -> host_pb2.GetHostInfoResponse:
        """Return what the host is, can do and holds."""
        return self._call(self._hosts.GetHostInfo, host_pb2.GetHostInfoRequest())

    def create_vm(self, vm_id: str, **more: Unpack[VmOptions]) -> vm_pb2.Vm:
        """Make a VM named `vms/{vm_id}`; `vm_id` matches [a-z][a-z0-9-]{0,62}."""
        return (self._call(self._vms.CreateVm, request.create_vm(vm_id, **more))).vm

    def get_vm(self, vm: str) -> vm_pb2.Vm:
        """Return a VM by its name, `vms/{vm}`."""
        return (self._call(self._vms.GetVm, vm_pb2.GetVmRequest(name=vm))).vm

    def list_vms(self) -> list[vm_pb2.Vm]:
        """Return every VM, by name."""
        vms: list[vm_pb2.Vm] = []
        wanted = vm_pb2.ListVmsRequest()
        while True:
            page = self._call(self._vms.ListVms, wanted)
            vms += page.vms
            if not page.next_page_token:
                return vms
            wanted.page_token = page.next_page_token

    def delete_vm(self, vm: str, *, force: bool = False, request_id: str = "") -> None:
        """Delete a VM; one with vCPUs only if `force` is set."""
        self._call(self._vms.DeleteVm, request.delete_vm(vm, force=force, request_id=request_id))

    def reset_vm(self, vm: str, *, request_id: str = "") -> vm_pb2.Vm:
        """Reset every vCPU of a VM."""
        return (self._call(self._vms.ResetVm, request.reset_vm(vm, request_id=request_id))).vm

    def request_permission(
        self, vm: str, *, feature: int = request.XTILE_DATA, guest: bool = True, request_id: str = ""
    ) -> int:
        """Ask for a dynamic feature, for guests or for the VMM itself; returns the mask permitted now.

        Source: arch_prctl(2), ARCH_REQ_XCOMP_GUEST_PERM and ARCH_REQ_XCOMP_PERM; the errno is the error KVM_ERRNO's.
        """
        wanted = request.request_permission(vm, feature=feature, guest=guest, request_id=request_id)
        return (self._call(self._vms.RequestPermission, wanted)).permitted

    def get_supported_cpuid(self, vm: str) -> vm_pb2.GetSupportedCpuidResponse:
        """Return what the VM's guests can be given: `cpuid.entries` for `set_cpuid`, and `xcomp_guest_supp`.

        Source: KVM_GET_SUPPORTED_CPUID and KVM_X86_XCOMP_GUEST_SUPP; the first knows of permissions, the second not.
        """
        wanted = vm_pb2.GetSupportedCpuidRequest(name=vm)
        return self._call(self._vms.GetSupportedCpuid, wanted)

    def set_cpuid(
        self,
        vm: str,
        *,
        xcr0_mask: int | None = None,
        table: Iterable[vm_pb2.CpuidEntry] | None = None,
        vcpu: str = "",
        request_id: str = "",
    ) -> int:
        """Give every vCPU of the VM, or `vcpu` alone, its CPUID; returns the mask that it may enable in XCR0.

        Either a `table`, or all the host supports cut down to `xcr0_mask`.
        Source: KVM_SET_CPUID2; the errno is the error KVM_ERRNO's: E2BIG, EINVAL.
        """
        wanted = request.set_cpuid(vm, xcr0_mask=xcr0_mask, table=table, vcpu=vcpu, request_id=request_id)
        return (self._call(self._vms.SetCpuid, wanted)).guest_supported_xcr0

    def get_permission(self, vm: str, *, guest: bool = True) -> vm_pb2.GetPermissionResponse:
        """Return the masks of what the host supports and of what is permitted, for guests or for the VMM itself.

        Source: arch_prctl(2), ARCH_GET_XCOMP_SUPP, ARCH_GET_XCOMP_GUEST_PERM and ARCH_GET_XCOMP_PERM.
        """
        return self._call(self._vms.GetPermission, request.get_permission(vm, guest=guest))

    def set_altstack(self, task: str, size_bytes: int | None, *, request_id: str = "") -> task_pb2.Task:
        """Set a task's alternate signal stack, None for none; the errno (ENOMEM) is the error KVM_ERRNO's.

        Source: sigaltstack(2).
        """
        wanted = request.set_altstack(task, size_bytes, request_id=request_id)
        return (self._call(self._tasks.SetAltstack, wanted)).task

    def create_vcpu(
        self, vm: str, *, index: int = 0, task: str = "", confidential: bool = False, request_id: str = ""
    ) -> vcpu_pb2.Vcpu:
        """Make a vCPU; it locks the VM's guest permissions. `confidential`: firmware keeps its registers."""
        wanted = request.create_vcpu(vm, index=index, task=task, confidential=confidential, request_id=request_id)
        return (self._call(self._vcpus.CreateVcpu, wanted)).vcpu

    def get_vcpu(self, vcpu: str) -> vcpu_pb2.Vcpu:
        """Return a vCPU by its name, `vms/{vm}/vcpus/{index}`."""
        return (self._call(self._vcpus.GetVcpu, vcpu_pb2.GetVcpuRequest(name=vcpu))).vcpu

    def list_vcpus(self, vm: str) -> list[vcpu_pb2.Vcpu]:
        """Return the vCPUs of a VM, by index."""
        vcpus: list[vcpu_pb2.Vcpu] = []
        wanted = vcpu_pb2.ListVcpusRequest(parent=vm)
        while True:
            page = self._call(self._vcpus.ListVcpus, wanted)
            vcpus += page.vcpus
            if not page.next_page_token:
                return vcpus
            wanted.page_token = page.next_page_token

    def delete_vcpu(self, vcpu: str, *, request_id: str = "") -> None:
        """Delete a vCPU and free its container."""
        self._call(self._vcpus.DeleteVcpu, request.delete_vcpu(vcpu, request_id=request_id))

    def required_size(self, vm: str) -> int:
        """Return the bytes that a buffer for a vCPU's registers needs, as KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2)."""
        return (self._call(self._vms.GetRequiredSize, vm_pb2.GetRequiredSizeRequest(name=vm))).bytes

    def get_xsave(self, vcpu: str) -> bytes:
        """Return a vCPU's registers as KVM_GET_XSAVE: 4,096 bytes, EINVAL once they need more."""
        return (self._call(self._vcpus.GetXsave, request.get_xsave(vcpu, larger=False))).xsave

    def get_xsave2(self, vcpu: str) -> bytes:
        """Return a vCPU's registers as KVM_GET_XSAVE2: 4,096 bytes, more once its container has grown."""
        return (self._call(self._vcpus.GetXsave, request.get_xsave(vcpu, larger=True))).xsave

    def set_xsave(self, vcpu: str, xsave: bytes, *, request_id: str = "") -> vcpu_pb2.SetXsaveResponse:
        """Set a vCPU's registers as KVM_SET_XSAVE. Give it `required_size` bytes: a shorter buffer may be EFAULT."""
        return self._call(self._vcpus.SetXsave, request.set_xsave(vcpu, xsave, request_id=request_id))

    def get_xcrs(self, vcpu: str) -> dict[int, int]:
        """Return a vCPU's extended control registers by number, as KVM_GET_XCRS: XCR0."""
        reply = self._call(self._vcpus.GetXcrs, vcpu_pb2.GetXcrsRequest(name=vcpu))
        return {each.xcr: each.value for each in reply.xcrs}

    def set_xcrs(self, vcpu: str, xcrs: Mapping[int, int], *, request_id: str = "") -> vcpu_pb2.SetXcrsResponse:
        """Set extended control registers by number, as KVM_SET_XCRS: those other than XCR0 are ignored."""
        return self._call(self._vcpus.SetXcrs, request.set_xcrs(vcpu, xcrs, request_id=request_id))

    def get_msrs(self, vcpu: str, indices: Iterable[int]) -> list[tuple[int, int]]:
        """Return (number, value) of the MSRs asked for, as KVM_GET_MSRS: up to the first that cannot be read."""
        reply = self._call(self._vcpus.GetMsrs, vcpu_pb2.GetMsrsRequest(name=vcpu, indices=indices))
        return [(each.index, each.value) for each in reply.entries]

    def set_msrs(
        self, vcpu: str, entries: Iterable[tuple[int, int]], *, request_id: str = ""
    ) -> vcpu_pb2.SetMsrsResponse:
        """Write MSRs in order, as KVM_SET_MSRS: `processed` is the place of the first that was refused."""
        return self._call(self._vcpus.SetMsrs, request.set_msrs(vcpu, entries, request_id=request_id))

    def check_compat(self, requirements: migration_pb2.VmRequirements) -> migration_pb2.CheckCompatResponse:
        """Ask whether the host could run a VM with these requirements; the reply lists all that stands against it."""
        wanted = migration_pb2.CheckCompatRequest(requirements=requirements)
        return self._call(self._migrations.CheckCompat, wanted)

    def list_exits(self, vm: str = "", *, unresolved: bool = False) -> list[exit_pb2.Exit]:
        """Return the exits of a VM, or of all, oldest first; only those not resolved yet if `unresolved`."""
        exits: list[exit_pb2.Exit] = []
        wanted = exit_pb2.ListExitsRequest(vm=vm, states=request.UNRESOLVED_STATES if unresolved else ())
        while True:
            page = self._call(self._exits.ListExits, wanted)
            exits += page.exits
            if not page.next_page_token:
                return exits
            wanted.page_token = page.next_page_token

    def arm_fault(self, point: str, **more: Unpack[FaultOptions]) -> fault_pb2.Fault:
        """Arm a fault at a point (`fpstate.realloc.alloc`) of a host that was started with faults.

        `errno` is what fails with, a number (12 is ENOMEM); the other options have the kernel's names and meanings.
        Source: Documentation/fault-injection/fault-injection.rst.
        """
        return (self._call(self._faults.ArmFault, request.arm_fault(point, **more))).fault

    def disarm_fault(self, name: str, *, request_id: str = "") -> fault_pb2.Fault:
        """Disarm a fault by its name, `faults/{id}`; returns it with its last counts."""
        return (self._call(self._faults.DisarmFault, request.disarm_fault(name, request_id=request_id))).fault

    def reset_faults(self, owner: str = "") -> list[fault_pb2.Fault]:
        """Disarm every fault, or those of one owner; returns them with their last counts."""
        message = fault_pb2.ResetFaultsRequest(owner=owner, request_id=request.new_id())
        return list((self._call(self._faults.ResetFaults, message)).faults)

    def renew_faults(self, owner: str = "") -> int:
        """Start the leases of an owner's faults anew; returns how many that are."""
        message = fault_pb2.RenewFaultsRequest(owner=owner, request_id=request.new_id())
        return (self._call(self._faults.RenewFaults, message)).renewed

    def evaluate(
        self, point: str, scope: fault_pb2.FaultScope | None = None, size: int = 0
    ) -> fault_pb2.FaultAction | None:
        """Report that a fault point of your own was reached; returns what is to happen there, None for nothing."""
        message = fault_pb2.EvaluateRequest(point=point, scope=scope, size=size, request_id=request.new_id())
        answer = self._call(self._faults.Evaluate, message)
        return answer.action if answer.fault else None

    def list_faults(self) -> list[fault_pb2.Fault]:
        """Return the armed faults with their counts, in the order in which they were armed."""
        faults: list[fault_pb2.Fault] = []
        wanted = fault_pb2.ListFaultsRequest()
        while True:
            page = self._call(self._faults.ListFaults, wanted)
            faults += page.faults
            if not page.next_page_token:
                return faults
            wanted.page_token = page.next_page_token

    def _call(self, call: grpc.UnaryUnaryMultiCallable[Request, Reply], message: Request) -> Reply:
        try:
            return call(message, timeout=self._timeout_s, metadata=trace_metadata())
        except grpc.RpcError as error:
            raise host_error(error) from error
