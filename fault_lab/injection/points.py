"""The fault points there are. One row each; docs/faults.md and `fpstated faults list` are made from them.

The rule is that of the kernel's ALLOW_ERROR_INJECTION(): a point stands only where nothing has been changed yet, and
where the caller checks the result and deals with it. ``unchanged`` and ``caller`` say how a row keeps it. Who adds a
row adds the line of code that asks, at ``where``.

Source: Documentation/fault-injection/fault-injection.rst, "Requirements for the Error Injectable Functions".
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass
from typing import Final

from fault_lab.injection.action import (
    Action,
    Clock,
    Corrupt,
    Delay,
    Drop,
    Duplicate,
    FailErrno,
    FailStatus,
    Hold,
    Kill,
    Pause,
    Reorder,
)


class ErrorClass(enum.Enum):
    """What a point can do to its caller: the kernel's error types, and what calls and processes have besides."""

    #: An allocation returns NULL (EI_ETYPE_NULL): ENOMEM and no other.
    NULL = "NULL"
    #: A function returns -errno (EI_ETYPE_ERRNO).
    ERRNO = "ERRNO"
    #: A call ends with a gRPC status, or late.
    STATUS = "STATUS"
    #: A call ends with a gRPC status, or late, or never as far as its caller can tell; or it is made once more.
    CALL = "CALL"
    #: A message is lost, late, doubled, overtaken or damaged.
    MESSAGE = "MESSAGE"
    #: A process ends, or stands still.
    PROCESS = "PROCESS"
    #: A clock is wrong.
    CLOCK = "CLOCK"


class Seat(enum.Enum):
    """Who asks at a point."""

    #: The host agent: the machine or its services. ArmFault arms it there.
    HOST = "host"
    #: What runs a plan: the simulator, or the live runner outside of the processes.
    WORLD = "world"


_ACTIONS: Final[dict[ErrorClass, tuple[type[Action], ...]]] = {
    ErrorClass.NULL: (FailErrno,),
    ErrorClass.ERRNO: (FailErrno,),
    ErrorClass.STATUS: (FailStatus, Delay),
    ErrorClass.CALL: (FailStatus, Delay, Drop, Duplicate, Hold),
    ErrorClass.MESSAGE: (Delay, Drop, Duplicate, Reorder, Corrupt, Hold),
    ErrorClass.PROCESS: (Kill, Pause),
    ErrorClass.CLOCK: (Clock,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPoint:
    """A place where something can be made to go wrong. ``entity`` says whose hits are counted apart."""

    name: str
    error: ErrorClass
    seat: Seat
    entity: str
    where: str
    caller: str
    unchanged: str
    #: The errnos that the caller knows; empty where it takes no errno.
    errnos: tuple[int, ...] = ()

    @property
    def actions(self) -> tuple[type[Action], ...]:
        """The kinds of action that the point takes."""
        return _ACTIONS[self.error]

    @property
    def objection_to_none(self) -> str:
        """What the point would accept where nothing is said."""
        kinds = " or ".join(kind.__name__ for kind in self.actions)
        numbers = " or ".join(errno.errorcode[number] for number in self.errnos)
        return numbers or kinds

    def objection(self, action: Action) -> str:
        """What the point would accept instead of ``action``; empty where it takes it."""
        if type(action) not in self.actions:
            return " or ".join(kind.__name__ for kind in self.actions)
        if isinstance(action, FailErrno) and action.errno not in self.errnos:
            return " or ".join(f"{number} ({errno.errorcode[number]})" for number in self.errnos)
        return ""


_NO_MEMORY: Final = (errno.ENOMEM,)
_USER_COPY: Final = (errno.ENOMEM, errno.EFAULT)

_POINTS: Final = (
    FaultPoint(
        name="fpstate.guest.alloc",
        error=ErrorClass.NULL,
        seat=Seat.HOST,
        entity="vCPU",
        where="fpu_core/alloc.py, Allocator.vzalloc",
        caller="host_agent/vcpus.py, create: ALLOCATION_FAILED, no vCPU",
        unchanged="a new guest's container: nothing is charged before it is there",
        errnos=_NO_MEMORY,
    ),
    FaultPoint(
        name="fpstate.realloc.alloc",
        error=ErrorClass.NULL,
        seat=Seat.HOST,
        entity="vCPU",
        where="fpu_core/alloc.py, Allocator.vzalloc",
        caller="fpu_core/swap.py: an exit NO_MEMORY, the vCPU is parked; in a restore the ioctl's errno",
        unchanged="the larger container of a guest: the old one stays in use, nothing is charged",
        errnos=_NO_MEMORY,
    ),
    FaultPoint(
        name="fpstate.realloc.perm",
        error=ErrorClass.ERRNO,
        seat=Seat.HOST,
        entity="vCPU",
        where="fpu_core/realloc.py, _grow",
        caller="fpu_core/swap.py: an exit NO_PERMISSION, the vCPU is parked; in a restore EPERM",
        unchanged="the permission of the guest's process is looked up, which comes before the allocation",
        errnos=(errno.EPERM,),
    ),
    FaultPoint(
        name="fpstate.task.realloc.alloc",
        error=ErrorClass.NULL,
        seat=Seat.HOST,
        entity="VM",
        where="fpu_core/alloc.py, Allocator.vzalloc",
        caller="fpu_core/task.py: SIGSEGV for the task",
        unchanged="the larger container of a host task: the old one stays in use, nothing is charged",
        errnos=_NO_MEMORY,
    ),
    FaultPoint(
        name="fpstate.task.realloc.perm",
        error=ErrorClass.ERRNO,
        seat=Seat.HOST,
        entity="VM",
        where="fpu_core/realloc.py, _grow",
        caller="fpu_core/task.py: SIGILL for the task",
        unchanged="the permission of the task's process is looked up, which comes before the allocation",
        errnos=(errno.EPERM,),
    ),
    FaultPoint(
        name="kvm.vm.alloc",
        error=ErrorClass.NULL,
        seat=Seat.HOST,
        entity="VM",
        where="host_agent/vms.py, create_vm",
        caller="host_agent/vms.py, create_vm: ALLOCATION_FAILED, no VM",
        unchanged="KVM_CREATE_VM takes memory for struct kvm before there is a VM (virt/kvm/kvm_main.c)",
        errnos=_NO_MEMORY,
    ),
    FaultPoint(
        name="kvm.vcpu.alloc",
        error=ErrorClass.NULL,
        seat=Seat.HOST,
        entity="vCPU",
        where="host_agent/vcpus.py, create",
        caller="host_agent/vcpus.py, create: ALLOCATION_FAILED, no vCPU",
        unchanged="KVM_CREATE_VCPU takes memory for struct kvm_vcpu before there is a vCPU (virt/kvm/kvm_main.c)",
        errnos=_NO_MEMORY,
    ),
    FaultPoint(
        name="kvm.set_cpuid.copy",
        error=ErrorClass.ERRNO,
        seat=Seat.HOST,
        entity="vCPU, or the VM where all of its are meant",
        where="host_agent/vms.py, set_cpuid",
        caller="host_agent/vms.py, set_cpuid: KVM_ERRNO",
        unchanged="KVM_SET_CPUID2 copies the table in before it looks at it (arch/x86/kvm/cpuid.c)",
        errnos=_USER_COPY,
    ),
    FaultPoint(
        name="kvm.set_xsave.copy",
        error=ErrorClass.ERRNO,
        seat=Seat.HOST,
        entity="vCPU",
        where="host_agent/vcpu_state.py, set_xsave",
        caller="host_agent/vcpu_state.py: KVM_ERRNO",
        unchanged="KVM_SET_XSAVE copies the image in before it looks at it (arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl)",
        errnos=_USER_COPY,
    ),
    FaultPoint(
        name="kvm.set_xcrs.copy",
        error=ErrorClass.ERRNO,
        seat=Seat.HOST,
        entity="vCPU",
        where="host_agent/vcpu_state.py, set_xcrs",
        caller="host_agent/vcpu_state.py: KVM_ERRNO",
        unchanged="KVM_SET_XCRS copies the table in before it looks at it (arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl)",
        errnos=_USER_COPY,
    ),
    FaultPoint(
        name="kvm.set_msrs.copy",
        error=ErrorClass.ERRNO,
        seat=Seat.HOST,
        entity="vCPU",
        where="host_agent/vcpu_state.py, set_msrs",
        caller="host_agent/vcpu_state.py: KVM_ERRNO, not one entry written",
        unchanged="KVM_SET_MSRS copies its entries in before it writes one (arch/x86/kvm/x86.c, msr_io)",
        errnos=_USER_COPY,
    ),
    FaultPoint(
        name="rpc.server.receive",
        error=ErrorClass.STATUS,
        seat=Seat.HOST,
        entity="method, /package.Service/Method",
        where="host_agent/service/fault_layer.py",
        caller="the client: the status is the call's",
        unchanged="the call has been read and admitted, and not yet carried out",
    ),
    FaultPoint(
        name="rpc.server.reply",
        error=ErrorClass.STATUS,
        seat=Seat.HOST,
        entity="method, /package.Service/Method",
        where="host_agent/service/fault_layer.py",
        caller="the client: it cannot tell whether the call was carried out, and asks again with its request id",
        unchanged="a reply that is lost changes nothing more: the call was carried out, and is durable",
    ),
    FaultPoint(
        name="rpc.client.send",
        error=ErrorClass.CALL,
        seat=Seat.WORLD,
        entity="method, /package.Service/Method",
        where="fault_lab/live/interceptors, in a client",
        caller="the client: a status before anything was sent, or its deadline; it may try again",
        unchanged="nothing of the call has left",
    ),
    FaultPoint(
        name="rpc.client.receive",
        error=ErrorClass.CALL,
        seat=Seat.WORLD,
        entity="method, /package.Service/Method",
        where="fault_lab/live/interceptors, in a client",
        caller="the client: it cannot tell whether the call was carried out, and asks again with its request id",
        unchanged="the answer is there, and its caller has not heard of it",
    ),
    FaultPoint(
        name="link.message",
        error=ErrorClass.MESSAGE,
        seat=Seat.WORLD,
        entity="link, from->to",
        where="what carries messages between nodes",
        caller="both ends: deadlines, retries with the same request id, streams that end",
        unchanged="the message is about to leave",
    ),
    FaultPoint(
        name="node.run",
        error=ErrorClass.PROCESS,
        seat=Seat.WORLD,
        entity="node",
        where="what runs a node, before it hands it an event",
        caller="the others, and the node itself when it starts again from what is durable",
        unchanged="the node is between two events",
    ),
    FaultPoint(
        name="node.clock",
        error=ErrorClass.CLOCK,
        seat=Seat.WORLD,
        entity="node",
        where="what tells a node the time, before it hands it an event",
        caller="the node: leases, delays and deadlines",
        unchanged="the node is between two events",
    ),
    FaultPoint(
        name="journal.write",
        error=ErrorClass.ERRNO,
        seat=Seat.WORLD,
        entity="node",
        where="the disk under a host's journal, before a group of records is written",
        caller="host_agent/journal: ENOSPC refuses new work, EIO stops the host",
        unchanged="no record of the group is on the disk, and nobody has heard of one",
        errnos=(errno.EIO, errno.ENOSPC),
    ),
    FaultPoint(
        name="journal.sync",
        error=ErrorClass.ERRNO,
        seat=Seat.WORLD,
        entity="node",
        where="the disk under a host's journal, before a group of records is synced",
        caller="host_agent/journal: the host stops, since nobody knows what is on the disk",
        unchanged="the group may be on the disk or not, and nobody has heard of it",
        errnos=(errno.EIO,),
    ),
    FaultPoint(
        name="controller.decide",
        error=ErrorClass.MESSAGE,
        seat=Seat.WORLD,
        entity="node",
        where="a controller, before it sends a decision",
        caller="host_agent/decisions.py: one decision wins a generation, the deadline pauses",
        unchanged="the decision is made and nobody has heard of it",
    ),
)

#: Every point by name.
FAULT_POINTS: Final = {point.name: point for point in _POINTS}
#: Those that a host has itself, whatever else Evaluate may be asked about.
HOST_POINTS: Final = tuple(point.name for point in _POINTS if point.seat is Seat.HOST)


def points_as_json() -> list[dict[str, object]]:
    """The list for machines: what `fpstated faults list --json` prints."""
    return [
        {
            "name": point.name,
            "error": point.error.value,
            "seat": point.seat.value,
            "errnos": [errno.errorcode[number] for number in point.errnos],
            "actions": [kind.__name__ for kind in point.actions],
            "entity": point.entity,
            "where": point.where,
            "caller": point.caller,
            "unchanged": point.unchanged,
        }
        for point in _POINTS
    ]


def points_table() -> str:
    """The table of docs/faults.md."""
    lines = ["| point | fails with | whose hits | handled by | why nothing has been changed |", "|---|---|---|---|---|"]
    for point in _POINTS:
        fails = ", ".join(errno.errorcode[number] for number in point.errnos) or point.error.value.lower()
        lines.append(f"| `{point.name}` | {fails} | {point.entity} | {point.caller} | {point.unchanged} |")
    return "\n".join(lines) + "\n"
