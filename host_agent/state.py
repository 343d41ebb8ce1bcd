"""HostState: everything the agent knows. Only the functions behind ``HostMachine.apply`` change it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from fault_lab.injection.hit import Hit
from fault_lab.injection.table import ArmedFault, FaultTable, errno_of
from fpu_core.alloc import Account, Allocator
from fpu_core.config import FpuConfig
from fpu_core.cpu import Cpu
from fpu_core.errors import Errno
from fpu_core.fpu import Fpu, FpuHost
from fpu_core.invariants import CoreView, PermissionHistory
from fpu_core.rt_signal import SignalFrame
from fpu_core.trace import CoreTracer
from host_agent.audit import Audit
from host_agent.deadlines import Deadlines, Timed
from host_agent.effects import Effect, FaultChanged
from host_agent.errors import Reason, Refused
from host_agent.events import Directive, Outcome
from host_agent.exits import DecisionKind, ExitRecord
from host_agent.kvm.vcpu import KvmVm, Vcpu
from host_agent.migrations import MigrationRecord, Moved

NS_PER_S = 1_000_000_000
#: The label of a VM whose hits pass the task filter of a fault: the kernel's /proc/<pid>/make-it-fail.
MAKE_IT_FAIL = "make-it-fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """What a host is started with. The first record of a log. Times in nanoseconds, sizes in bytes."""

    host: str = "host"
    boot_id: str = "boot"
    default_profile: str = "sapphire-rapids"
    #: In ``cpuid -r`` form; where it is set it stands for ``default_profile``.
    default_cpuid_dump: str = ""
    default_kernel_rules: str = "6.18"
    #: Modelled CPUs of each kind of processor.
    cpus: int = 4
    byte_limit: int | None = None
    faults: bool = False
    #: Whether a journal keeps what is acknowledged.
    durable: bool = False
    check_invariants: bool = False
    default_lease_ns: int = 30 * NS_PER_S
    max_lease_ns: int = 3600 * NS_PER_S
    #: How long a controller has before the default action is taken, and that: one of ``DEFAULT_ACTIONS``.
    exit_deadline_ns: int = 30 * NS_PER_S
    exit_default: DecisionKind = DecisionKind.PAUSE
    max_vms: int = 10_000
    max_vcpus_per_vm: int = 200_000
    max_tasks_per_vm: int = 200_000
    max_sessions: int = 10_000
    #: Outcomes kept per vCPU until they are received.
    max_outcomes: int = 1024
    #: Answers kept for repeated request ids; resolved exits kept for GetExit.
    max_request_ids: int = 100_000
    max_resolved_exits: int = 10_000
    #: Decisions kept in the audit.
    max_decisions: int = 10_000
    #: The wall clock at the host's time 0, nanoseconds since 1970, as it stood when the process took the history up.
    unix_offset_ns: int = 0
    #: How long a VM stands still for a migration before its source goes on with it by itself.
    migration_deadline_ns: int = 300 * NS_PER_S
    #: Migrations that are over, and VMs that have gone, of which the host still knows.
    max_migrations: int = 10_000


@dataclass(slots=True)
class Platform:
    """One kind of processor under one kernel: the FPU host and its CPUs, shared by the VMs that use it."""

    host: FpuHost
    cpus: list[Cpu]


@dataclass(slots=True, eq=False)
class TaskRecord:
    """A host task. ``home_cpu`` is where it runs when it has to."""

    id: str
    uid: str
    fpu: Fpu
    home_cpu: int
    #: The vCPU whose KVM_RUN it is in.
    vcpu: Vcpu | None = None
    #: Frames of the signal handlers it is in, the innermost last.
    frames: list[SignalFrame] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class VmRecord:
    """A VM and what is in it."""

    id: str
    uid: str
    profile: str
    kernel_rules: str
    allocation_policy: str
    platform: Platform
    kvm: KvmVm
    owner_pid: int
    owner_name: str
    labels: dict[str, str]
    revision: int
    cpuid_dump: str = ""
    #: Components that its guests' CPUID will not have after the next RESET.
    hidden_at_reset: int = 0
    #: Rises with each host that owns the VM.
    ownership_epoch: int = 1
    tasks: dict[str, TaskRecord] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The resource name."""
        return f"vms/{self.id}"


@dataclass(slots=True, eq=False)
class VcpuSide:
    """What the agent keeps beside a vCPU, made when a session first asks for it."""

    uid: str
    task: str = ""
    session: SessionRecord | None = None
    #: The name of the session that has it, or had it last.
    last_session: str = ""
    next_seq: int = 1
    #: Outcomes by number, kept until received; the newest may be pending.
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    exit: ExitRecord | None = None
    #: Directives that the next session is to hear, by number: there was no session, or it has ended without a word.
    directives: dict[int, Directive] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class SessionRecord:
    """A guest agent's session. ``expires_ns`` is on the host's clock."""

    id: str
    epoch: int
    client_name: str
    lease_ns: int
    expires_ns: int
    explicit: bool
    #: Who opened it; nobody else's calls may name it, short of a role that has every session.
    principal: str = ""
    vcpus: dict[str, Vcpu] = field(default_factory=dict)
    directives: dict[int, Directive] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The resource name."""
        return f"sessions/{self.id}"

    @property
    def deadline_ns(self) -> int:
        """When its lease is over."""
        return self.expires_ns


@dataclass(slots=True, eq=False)
class ControlRecord:
    """A controller's hold on a scope ("" is the host)."""

    id: str
    scope: str
    epoch: int
    controller: str
    lease_ns: int
    expires_ns: int
    #: Who acquired it: nobody else who calls itself the same takes it over.
    principal: str = ""

    @property
    def name(self) -> str:
        """The resource name."""
        return f"controls/{self.id}"

    @property
    def deadline_ns(self) -> int:
        """When its lease is over."""
        return self.expires_ns


@dataclass(slots=True, eq=False)
class HostState:
    """Everything the agent knows."""

    config: HostConfig
    #: The boot that this history began with: ids are made of it, so that they outlive boots.
    first_boot_id: str = ""
    now_ns: int = 0
    revision: int = 0
    serial: int = 0
    epoch: int = 0
    draining: bool = False
    allocator: Allocator = field(default_factory=Allocator)
    platforms: dict[tuple[str, str], Platform] = field(default_factory=dict)
    vms: dict[str, VmRecord] = field(default_factory=dict)
    sessions: dict[str, SessionRecord] = field(default_factory=dict)
    #: Names of sessions that ended, and whether by expiry: their callers hear which.
    ended_sessions: dict[str, bool] = field(default_factory=dict)
    #: Those that ended by expiry and of which another session has had a vCPU since, with its epoch: whoever comes back
    #: must not go on, since numbers of that vCPU may be the other's.
    fenced_sessions: dict[str, int] = field(default_factory=dict)
    controls: dict[str, ControlRecord] = field(default_factory=dict)
    exits: dict[str, ExitRecord] = field(default_factory=dict)
    resolved_exits: dict[str, ExitRecord] = field(default_factory=dict)
    audit: Audit = field(default_factory=Audit)
    #: Migrations by name, open and over; the open ones by the VM they move: away from here, and to here.
    migrations: dict[str, MigrationRecord] = field(default_factory=dict)
    leaving: dict[str, MigrationRecord] = field(default_factory=dict)
    coming: dict[str, MigrationRecord] = field(default_factory=dict)
    #: VMs that have gone, by name.
    moved: dict[str, Moved] = field(default_factory=dict)
    faults: FaultTable = field(default_factory=FaultTable)
    #: By request id: the fingerprint of the request, and the answer it had.
    requests: dict[str, tuple[str, object]] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    permissions: dict[str, PermissionHistory] = field(default_factory=dict)
    #: Hears every hardware operation and allocation; None on a host nobody watches.
    tracer: CoreTracer | None = None
    #: Who is acting, for fault points with a scope: resource names.
    acting_vm: str = ""
    acting_vcpu: str = ""
    #: The command, and the event or the call within it that the operation is part of.
    acting_command: str = ""
    acting_trigger: str = ""
    #: The components a container is about to grow by.
    acting_xfeatures: int = 0
    #: What is due next. Follows from the rest.
    deadlines: Deadlines = field(init=False)

    def __post_init__(self) -> None:
        self.first_boot_id = self.first_boot_id or self.config.boot_id
        self.allocator.host.limit_bytes = self.config.byte_limit
        self.hook_faults()
        self.index_deadlines()

    def hook_faults(self) -> None:
        """Be asked at the core's fault points."""
        self.allocator.should_fail = self._should_fail
        for platform in self.platforms.values():
            platform.host.may_grow = self.may_grow

    def index_deadlines(self) -> None:
        """Make the index of deadlines anew."""
        self.deadlines = Deadlines(self._is_live, self.timed)
        self.deadlines.sweep()

    def timed(self) -> Iterator[Timed]:
        """Every record that has a deadline, or may have one."""
        yield from self.sessions.values()
        yield from self.controls.values()
        yield from self.faults.armed.values()
        yield from self.leaving.values()
        yield from (record for record in self.exits.values() if record.vm not in self.leaving)

    def _is_live(self, record: Timed) -> bool:
        match record:
            case SessionRecord():
                return self.sessions.get(record.name) is record
            case ControlRecord():
                return self.controls.get(record.name) is record
            case ArmedFault():
                return self.faults.armed.get(record.name) is record
            case MigrationRecord():
                return self.leaving.get(record.vm) is record
            case ExitRecord():  # the clock of one whose VM is leaving stands
                return self.exits.get(record.name) is record and record.vm not in self.leaving
            case _:
                raise AssertionError(f"{record} has no deadline")

    def _should_fail(self, point: str, _account: str, size_bytes: int) -> Errno:
        """The allocator's hook."""
        return Errno(self.fault_errno(point, size_bytes)) if self.faults.armed else Errno.OK

    def may_grow(self, point: str, xfeatures: int) -> Errno:
        """The core's hook where a container is to grow."""
        if not self.faults.armed:
            return Errno.OK
        self.acting_xfeatures = xfeatures
        return Errno(self.fault_errno(point))

    def fault_errno(self, point: str, size_bytes: int = 0) -> int:
        """Hit a point on behalf of whoever acts; return the errno it fails with, 0 for none."""
        if not self.faults.armed:
            return 0
        trigger = self.acting_trigger or self.acting_command
        trace = (trigger, self.acting_command) if self.acting_trigger else (trigger,)
        vm = self.vms.get(self.acting_vm)
        hit = Hit(
            point=point,
            entity=self.acting_vcpu or self.acting_vm,
            vm=self.acting_vm,
            vcpu=self.acting_vcpu,
            trigger=trigger,
            xfeatures=self.acting_xfeatures,
            size_bytes=size_bytes,
            trace=(point, *trace),
            make_it_fail=vm is not None and MAKE_IT_FAIL in vm.labels,
            now_ns=self.now_ns,
            event=self.revision,
        )
        return errno_of(self.fault_hit(hit))

    def fault_hit(self, hit: Hit, *, owner: str = "") -> ArmedFault | None:
        """Tell the armed faults of a hit, and whoever listens which of them fired."""
        fired = self.faults.hit(hit, owner=owner)
        if fired is not None:
            self.effects.append(FaultChanged("FIRED", fired, hit))
        return fired

    def listen(self, tracer: CoreTracer | None) -> None:
        """Let every hardware operation and allocation be heard from now on."""
        self.tracer = tracer
        for platform in self.platforms.values():
            platform.host.tracer = tracer
            for cpu in platform.cpus:
                cpu.listen(tracer)

    def become(self, other: HostState) -> None:
        """Take over everything that ``other`` knows; it is used up. Who listens here goes on listening."""
        tracer = self.tracer
        for each in fields(self):
            setattr(self, each.name, getattr(other, each.name))
        self.hook_faults()
        self.index_deadlines()  # it asks the state whether a record is live
        self.listen(tracer)

    def act_for(self, vm: str, vcpu: str = "", trigger: str = "") -> None:
        """Say on whose behalf the next operations are, and which event of theirs is the reason."""
        self.acting_vm, self.acting_vcpu, self.acting_trigger = vm, vcpu, trigger
        self.acting_xfeatures = 0

    def next_id(self, kind: str) -> str:
        """Return an id nobody had before, on this boot or another: made of the first boot's id and a counter."""
        self.serial += 1
        return self._id(kind, self.serial)

    def _id(self, kind: str, serial: int) -> str:
        return f"{kind}-{hashlib.sha256(f'{self.first_boot_id}/{kind}/{serial}'.encode()).hexdigest()[:12]}"

    def vcpu_uid(self, vcpu: Vcpu) -> str:
        """The uid of a vCPU: of this creation of it, whatever had its name before, here or where it came from."""
        side = vcpu.agent
        return side.uid if isinstance(side, VcpuSide) else self._id("vcpu", vcpu.serial)

    def next_epoch(self) -> int:
        """Return a fencing token higher than any before."""
        self.epoch += 1
        return self.epoch

    # -- look-ups: the resource, or a refusal that names it ------------------------------------------------------------

    def vm(self, name: str) -> VmRecord:
        """``vms/{vm}``."""
        found = self.vms.get(name)
        if found is None:
            self.check_not_elsewhere(name)
            raise Refused(Reason.VM_NOT_FOUND, f"there is no VM {name!r}", vm=name)
        return found

    def check_not_elsewhere(self, vm: str) -> None:
        """Refuse a VM that has gone with where it is, and one that is on its way here with the migration."""
        coming = self.coming.get(vm)
        if coming is not None:
            text = f"{vm!r} is on its way here: {coming.name!r} is {coming.state.name}"
            raise Refused(Reason.MIGRATION_IN_PROGRESS, text, vm=vm, migration=coming.name)
        moved = self.moved.get(vm)
        if moved is not None:
            raise Refused(Reason.VM_MOVED, f"{vm!r} lives at {moved.target!r} now", vm=vm, target=moved.target)

    def vcpu(self, name: str) -> Vcpu:
        """``vms/{vm}/vcpus/{index}``."""
        vm_name, _, index = name.partition("/vcpus/")
        vm = self.vms.get(vm_name)
        found = vm.kvm.vcpus.get(int(index)) if vm is not None and index.isdecimal() else None
        if found is None or str(found.index) != index:  # "00" is no name of vCPU 0
            if vm is None:
                self.check_not_elsewhere(vm_name)
            raise Refused(Reason.VCPU_NOT_FOUND, f"there is no vCPU {name!r}", vcpu=name)
        return found

    def task(self, name: str) -> tuple[VmRecord, TaskRecord]:
        """``vms/{vm}/tasks/{task}``."""
        vm_name, _, task_id = name.partition("/tasks/")
        vm = self.vms.get(vm_name)
        found = vm.tasks.get(task_id) if vm is not None else None
        if vm is None or found is None:
            if vm is None:
                self.check_not_elsewhere(vm_name)
            raise Refused(Reason.TASK_NOT_FOUND, f"there is no task {name!r}", task=name)
        return vm, found

    def session(self, name: str, epoch: int) -> SessionRecord:
        """``sessions/{id}``, if ``epoch`` is its own and its lease runs."""
        found = self.sessions.get(name)
        if found is None and name in self.fenced_sessions:
            text = f"session {name!r} has expired, and a newer one has had a vCPU of it since"
            newer = self.fenced_sessions[name]
            raise Refused(Reason.SESSION_FENCED, text, session=name, epoch=epoch, currentEpoch=newer)
        if found is None:
            reason = Reason.SESSION_EXPIRED if self.ended_sessions.get(name) else Reason.SESSION_NOT_FOUND
            text = "has expired" if reason is Reason.SESSION_EXPIRED else "does not exist, or was closed"
            raise Refused(reason, f"session {name!r} {text}: open a new one to go on", session=name)
        if found.epoch != epoch:
            raise Refused(
                Reason.SESSION_FENCED,
                f"epoch {epoch} of {name!r} is not the current one",
                session=name,
                epoch=epoch,
                currentEpoch=found.epoch,
            )
        return found

    def side(self, vcpu: Vcpu) -> VcpuSide:
        """The agent's part of a vCPU, made if it is the first time."""
        if vcpu.agent is None:
            vcpu.agent = VcpuSide(uid=self.vcpu_uid(vcpu))
        assert isinstance(vcpu.agent, VcpuSide)
        return vcpu.agent

    def vcpu_name(self, vcpu: Vcpu) -> str:
        """The resource name of a vCPU."""
        return f"{vcpu.vm.account.name}/vcpus/{vcpu.index}"

    # -- for the invariants --------------------------------------------------------------------------------------------

    def every_vm(self) -> list[VmRecord]:
        """The VMs there are, and those that have their memory here and are not this host's yet."""
        staged = (record.staged for record in self.coming.values())
        return [*self.vms.values(), *(vm for vm in staged if vm is not None)]

    def core_views(self) -> list[CoreView]:
        """One view per platform, for the checker. The host's account is shared, so the first view has every owner."""
        views = []
        for platform in self.platforms.values():
            vms = [vm for vm in self.every_vm() if vm.platform is platform]
            views.append(
                CoreView(
                    host=platform.host,
                    cpus=platform.cpus,
                    fpus=[task.fpu for vm in vms for task in vm.tasks.values()],
                    guests=[(vcpu.guest, vm.kvm.account) for vm in vms for vcpu in vm.kvm.vcpus.values()],
                    accounts=[vm.kvm.account for vm in vms],
                )
            )
        return views

    def platform_config(self, vm: VmRecord) -> FpuConfig:
        """The boot configuration of the processor a VM runs on."""
        return vm.platform.host.config


def vm_account(state: HostState, vm_id: str, byte_limit: int | None) -> Account:
    """The ledger line of a VM, under the host's."""
    account = Account(f"vms/{vm_id}", parent=state.allocator.host)
    account.set_limit(byte_limit)
    return account
