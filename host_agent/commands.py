"""The commands that change a host: frozen values, one class each, which a log can hold and replay.

Nothing else changes a HostMachine. Time is not in a command but beside it (``HostMachine.apply(command, now_ns)``), and
so in the log. ``request_id``, where a command has one, makes it safe to send twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fault_lab.injection.action import Action
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.draw import PPM
from fault_lab.injection.hit import Hit, Selector, Window
from host_agent.events import GuestEvent
from host_agent.exits import Decision
from host_agent.kvm.cpuid import CpuidEntry
from host_agent.migration_commands import MigrationCommand
from host_agent.state import HostConfig
from host_agent.task_commands import TaskCommand


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """A process takes this history up, with settings of its own. What a boot keeps: ``host_agent.boot``."""

    config: HostConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVm:
    """A VM on a processor: ``profile`` names a built-in one, or ``cpuid_dump`` holds another in ``cpuid -r`` form.

    ``has_protected_state``: the VM type that answers EINVAL where userspace asks for a confidential vCPU's state.
    """

    vm_id: str
    profile: str = ""
    cpuid_dump: str = ""
    kernel_rules: str = ""
    allocation_policy: str = "on_swap"
    has_protected_state: bool = False
    byte_limit: int | None = None
    owner_pid: int = 0
    owner_name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateVm:
    """Change what ``fields`` names: byte_limit, owner, labels."""

    vm: str
    fields: tuple[str, ...]
    byte_limit: int | None = None
    owner_pid: int = 0
    owner_name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    etag: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteVm:
    """Remove a VM. One that still has vCPUs goes with ``force`` only: they stop, their open exits are cancelled."""

    vm: str
    force: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetVm:
    """RESET every vCPU of a VM; open exits are cancelled."""

    vm: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPermission:
    """ARCH_REQ_XCOMP_PERM (host) or ARCH_REQ_XCOMP_GUEST_PERM (``guest``) of the VM's process for one feature."""

    vm: str
    feature: int
    guest: bool
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCpuid:
    """KVM_SET_CPUID2 for every vCPU of a VM and those to come, or for ``vcpu`` alone; after it has run, EINVAL.

    Either ``table``, which may be empty, or ``xcr0_mask``: all the host supports, cut down to this CPUID.0xD.0 EDX:EAX.
    """

    vm: str
    xcr0_mask: int | None = None
    table: tuple[CpuidEntry, ...] | None = None
    vcpu: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVcpu:
    """A vCPU. ``task`` is the thread that will run it where an event names none; empty for one of its own."""

    vm: str
    index: int
    task: str = ""
    confidential: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteVcpu:
    """Remove a vCPU; if it is in the guest it leaves first."""

    vcpu: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetXsave:
    """KVM_SET_XSAVE: the registers of a vCPU in the user format, as KVM_GET_XSAVE2 gives them."""

    vcpu: str
    xsave: bytes
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetXcrs:
    """KVM_SET_XCRS: (number, value) of each extended control register."""

    vcpu: str
    xcrs: tuple[tuple[int, int], ...]
    flags: int = 0
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMsrs:
    """KVM_SET_MSRS: (number, value) of each model-specific register, in order."""

    vcpu: str
    entries: tuple[tuple[int, int], ...]
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTask:
    """A new thread of the VM's process."""

    vm: str
    task_id: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneTask:
    """clone(2) by ``task``: a thread of the same process, or a process that inherits its permissions."""

    task: str
    task_id: str
    thread: bool
    #: The child's shadow stack pointer, 0 to keep the parent's.
    ssp: int = 0
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecTask:
    """execve(2) by ``task``."""

    task: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitTask:
    """The task ends."""

    task: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleTask:
    """The task runs on ``cpu`` from now on."""

    task: str
    cpu: int
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptTask:
    """The task loses its CPU."""

    task: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UseFeature:
    """User code of the task loads ``data`` at ``offset`` of ``feature``, then reads ``length`` bytes there.

    #NM grows the task's container.
    """

    task: str
    feature: int
    offset: int
    data: bytes = b""
    length: int = 0
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFpu:
    """The kernel uses the FPU itself on the CPU where ``task`` runs: one kernel_fpu section."""

    task: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSession:
    """A guest agent takes charge of ``vcpus``; an earlier session of theirs is fenced off. ``principal`` says whose."""

    client_name: str
    vcpus: tuple[str, ...]
    principal: str = ""
    explicit: bool = False
    lease_ns: int = 0
    required_capabilities: tuple[str, ...] = ()
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAlive:
    """The session's lease starts anew."""

    session: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseSession:
    """The agent is done; its vCPUs leave the guest and stay."""

    session: str
    epoch: int
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitBatch:
    """Events in order, not atomic; ``received`` are (vCPU, number) up to which outcomes may be forgotten."""

    session: str
    epoch: int
    events: tuple[GuestEvent, ...]
    received: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AckDirective:
    """The agent carried a directive out."""

    session: str
    epoch: int
    directive: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquireControl:
    """A controller takes charge of the exits of ``scope``: a VM's name, or empty for the host."""

    scope: str
    controller: str
    principal: str = ""
    lease_ns: int = 0
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewControl:
    """The control lease starts anew."""

    control: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseControl:
    """The controller gives the scope up."""

    control: str
    epoch: int
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveExit:
    """Decide an exit: compare-and-swap on its generation and on the control epoch.

    ``principal``, who asked, and ``reason`` are for the audit.
    """

    exit: str
    generation: int
    control: str
    control_epoch: int
    decision: Decision
    decided_by: str = ""
    principal: str = ""
    reason: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetHostLimit:
    """The host's byte limit, None for none."""

    byte_limit: int | None
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainHost:
    """No new VM, vCPU or session from now on. How, is the process's; here it makes one request another's repetition."""

    grace_ns: int = 0
    resume_target: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFault:
    """Arm a fault point; refused unless the host was started with faults. A lease of 0 never ends."""

    point: str
    action: Action
    owner: str = ""
    selector: Selector = field(default_factory=Selector)
    attributes: FaultAttributes = field(default_factory=FaultAttributes)
    window: Window = field(default_factory=Window)
    gate_ppm: int = PPM
    lease_ns: int = 0
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DisarmFault:
    """Take one fault out."""

    name: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetFaults:
    """Take every fault of one owner out, or of everybody: halt all."""

    owner: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewFaults:
    """Start the leases of an owner's faults anew."""

    owner: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HitFault:
    """A point outside of the machine was reached: in a service of the host, or in another program.

    Time and event of ``hit`` are the machine's to fill in. ``owner`` asks the faults of one owner alone.
    """

    hit: Hit
    owner: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed: leases, delays and deadlines that are due take effect."""


Command = (
    Boot
    | CreateVm
    | UpdateVm
    | DeleteVm
    | ResetVm
    | RequestPermission
    | SetCpuid
    | CreateVcpu
    | DeleteVcpu
    | SetXsave
    | SetXcrs
    | SetMsrs
    | CreateTask
    | CloneTask
    | ExecTask
    | ExitTask
    | ScheduleTask
    | PreemptTask
    | UseFeature
    | KernelFpu
    | OpenSession
    | KeepAlive
    | CloseSession
    | SubmitBatch
    | AckDirective
    | AcquireControl
    | RenewControl
    | ReleaseControl
    | ResolveExit
    | SetHostLimit
    | DrainHost
    | ArmFault
    | DisarmFault
    | ResetFaults
    | RenewFaults
    | HitFault
    | Tick
    | TaskCommand
    | MigrationCommand
)
