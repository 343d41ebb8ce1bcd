"""Requests of the calls around a session, for the blocking `Host` and the `AsyncHost` alike. Pure."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Iterable, Mapping
from typing import Required, TypedDict, Unpack

from fpstate.fault.v1 import fault_pb2
from fpstate.v1 import exit_pb2, task_pb2, vcpu_pb2, vm_pb2

from guest_agent.wire import duration_to_proto

XTILE_DATA = 18
#: The states of an exit that still wants something.
UNRESOLVED_STATES = (exit_pb2.EXIT_STATE_OPEN, exit_pb2.EXIT_STATE_APPLYING, exit_pb2.EXIT_STATE_PAUSED)


class AllocationPolicy(enum.Enum):
    """When memory for a larger guest container is taken."""

    ON_SWAP = vm_pb2.ALLOCATION_POLICY_ON_SWAP  # in the swap that leaves the guest, as the founding mail asks
    ON_WRITE = vm_pb2.ALLOCATION_POLICY_ON_WRITE  # in the intercept, before the write is committed
    ON_CPUID = vm_pb2.ALLOCATION_POLICY_ON_CPUID  # when userspace sets the CPUID
    THREE_BUFFER = vm_pb2.ALLOCATION_POLICY_THREE_BUFFER  # at creation, for the largest size


class VmOptions(TypedDict, total=False):
    """What a VM may be made with.

    `profile`: a built-in processor, the host's default if empty. `kernel_rules`: "6.18" or "6.12". `policy`: when
    memory is taken. `byte_limit`: for all its containers together, in bytes. `labels`: to find it by.
    `has_protected_state`: who asks for the state of a confidential vCPU gets EINVAL, not zeros.
    """

    profile: str
    kernel_rules: str
    policy: AllocationPolicy
    byte_limit: int | None
    labels: Mapping[str, str]
    has_protected_state: bool
    request_id: str


class FaultOptions(TypedDict, total=False):
    """What a fault may be armed with.

    `errno`: what fails with, required. `vm`, `vcpu`: whose hits count. `owner`: whose fault it is. `fail_nth`: exactly
    this hit fires. `times`: how many hits fire, -1 for all. `probability_ppm`: of each, in parts per million.
    `interval`: only every so-manieth hit. `space`: bytes that may be asked for before. `seed`: of the draws. `lease_s`:
    how long it stays armed, in seconds.
    """

    errno: Required[int]
    vm: str
    vcpu: str
    owner: str
    fail_nth: int | None
    times: int | None
    probability_ppm: int | None
    interval: int
    space: int
    seed: int
    lease_s: float | None
    request_id: str


def create_vm(vm_id: str, **more: Unpack[VmOptions]) -> vm_pb2.CreateVmRequest:
    """Return the request for a VM; see `Host.create_vm`."""
    vm = vm_pb2.Vm(
        profile=more.get("profile", ""),
        kernel_rules=more.get("kernel_rules", ""),
        allocation_policy=more.get("policy", AllocationPolicy.ON_SWAP).value,
        byte_limit=more.get("byte_limit"),
        labels=dict(more.get("labels", {})),
        has_protected_state=more.get("has_protected_state", False),
    )
    return vm_pb2.CreateVmRequest(vm_id=vm_id, vm=vm, request_id=more.get("request_id") or new_id())


def request_permission(
    vm: str, *, feature: int = XTILE_DATA, guest: bool = True, request_id: str = ""
) -> vm_pb2.RequestPermissionRequest:
    """Return the request for a permission; see `Host.request_permission`."""
    scope = vm_pb2.PERMISSION_SCOPE_GUEST if guest else vm_pb2.PERMISSION_SCOPE_HOST
    return vm_pb2.RequestPermissionRequest(name=vm, scope=scope, feature=feature, request_id=request_id or new_id())


def set_cpuid(
    vm: str,
    *,
    xcr0_mask: int | None = None,
    table: Iterable[vm_pb2.CpuidEntry] | None = None,
    vcpu: str = "",
    request_id: str = "",
) -> vm_pb2.SetCpuidRequest:
    """Return the request for a CPUID; see `Host.set_cpuid`."""
    if (xcr0_mask is None) == (table is None):
        raise ValueError("expected xcr0_mask or table, and not both")
    wanted = vm_pb2.SetCpuidRequest(name=vm, vcpu=vcpu, request_id=request_id or new_id())
    if table is not None:
        wanted.table.CopyFrom(vm_pb2.CpuidTable(entries=table))
    if xcr0_mask is not None:
        wanted.xcr0_mask = xcr0_mask
    return wanted


def get_permission(vm: str, *, guest: bool = True) -> vm_pb2.GetPermissionRequest:
    """Return the question for a permission; see `Host.get_permission`."""
    scope = vm_pb2.PERMISSION_SCOPE_GUEST if guest else vm_pb2.PERMISSION_SCOPE_HOST
    return vm_pb2.GetPermissionRequest(name=vm, scope=scope)


def set_altstack(task: str, size_bytes: int | None, *, request_id: str = "") -> task_pb2.SetAltstackRequest:
    """Return the request for a signal stack; see `Host.set_altstack`."""
    return task_pb2.SetAltstackRequest(task=task, size_bytes=size_bytes, request_id=request_id or new_id())


def create_vcpu(
    vm: str, *, index: int = 0, task: str = "", confidential: bool = False, request_id: str = ""
) -> vcpu_pb2.CreateVcpuRequest:
    """Return the request for a vCPU; see `Host.create_vcpu`."""
    return vcpu_pb2.CreateVcpuRequest(
        parent=vm, index=index, task=task, confidential=confidential, request_id=request_id or new_id()
    )


def delete_vm(vm: str, *, force: bool = False, request_id: str = "") -> vm_pb2.DeleteVmRequest:
    """Return the request to delete a VM; see `Host.delete_vm`."""
    return vm_pb2.DeleteVmRequest(name=vm, force=force, request_id=request_id or new_id())


def reset_vm(vm: str, *, request_id: str = "") -> vm_pb2.ResetVmRequest:
    """Return the request to reset a VM; see `Host.reset_vm`."""
    return vm_pb2.ResetVmRequest(name=vm, request_id=request_id or new_id())


def delete_vcpu(vcpu: str, *, request_id: str = "") -> vcpu_pb2.DeleteVcpuRequest:
    """Return the request to delete a vCPU; see `Host.delete_vcpu`."""
    return vcpu_pb2.DeleteVcpuRequest(name=vcpu, request_id=request_id or new_id())


def get_xsave(vcpu: str, *, larger: bool) -> vcpu_pb2.GetXsaveRequest:
    """Return the request for the registers; see `Host.get_xsave` and, for `larger`, `Host.get_xsave2`."""
    ioctl = vcpu_pb2.XSAVE_IOCTL_GET_XSAVE2 if larger else vcpu_pb2.XSAVE_IOCTL_GET_XSAVE
    return vcpu_pb2.GetXsaveRequest(name=vcpu, ioctl=ioctl)


def set_xsave(vcpu: str, xsave: bytes, *, request_id: str = "") -> vcpu_pb2.SetXsaveRequest:
    """Return the request to set the registers; see `Host.set_xsave`."""
    return vcpu_pb2.SetXsaveRequest(name=vcpu, xsave=xsave, request_id=request_id or new_id())


def set_xcrs(vcpu: str, xcrs: Mapping[int, int], *, request_id: str = "") -> vcpu_pb2.SetXcrsRequest:
    """Return the request to set extended control registers; see `Host.set_xcrs`."""
    entries = [vcpu_pb2.Xcr(xcr=nr, value=value) for nr, value in xcrs.items()]
    return vcpu_pb2.SetXcrsRequest(name=vcpu, xcrs=entries, request_id=request_id or new_id())


def set_msrs(vcpu: str, entries: Iterable[tuple[int, int]], *, request_id: str = "") -> vcpu_pb2.SetMsrsRequest:
    """Return the request to write MSRs; see `Host.set_msrs`."""
    written = [vcpu_pb2.MsrEntry(index=index, value=value) for index, value in entries]
    return vcpu_pb2.SetMsrsRequest(name=vcpu, entries=written, request_id=request_id or new_id())


def arm_fault(point: str, **more: Unpack[FaultOptions]) -> fault_pb2.ArmFaultRequest:
    """Return the request to arm a fault; see `Host.arm_fault`."""
    fault = fault_pb2.Fault(
        point=point,
        scope=fault_pb2.FaultScope(vm=more.get("vm", ""), vcpu=more.get("vcpu", ""), owner=more.get("owner", "")),
        attributes=fault_pb2.FaultAttributes(
            probability_ppm=more.get("probability_ppm"),
            interval=more.get("interval", 0),
            times=more.get("times"),
            space=more.get("space", 0),
            fail_nth=more.get("fail_nth"),
            seed=more.get("seed", 0),
        ),
        action=fault_pb2.FaultAction(errno_action=fault_pb2.ErrnoAction(errno_value=more["errno"])),
        lease=duration_to_proto(more.get("lease_s")),
    )
    return fault_pb2.ArmFaultRequest(request_id=more.get("request_id") or new_id(), fault=fault)


def disarm_fault(name: str, *, request_id: str = "") -> fault_pb2.DisarmFaultRequest:
    """Return the request to disarm a fault; see `Host.disarm_fault`."""
    return fault_pb2.DisarmFaultRequest(name=name, request_id=request_id or new_id())


def new_id() -> str:
    """Return a request_id nobody had before, so that a repetition of this request is recognised as one."""
    return str(uuid.uuid4())
