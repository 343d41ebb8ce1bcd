"""Which resources a command may change, said before it is applied: looked at before and after, they are what changed.

Too many cost time, while somebody watches; too few would lose a change. So a command that is not in the table touches
everything, and a property test compares with all there is after every command.

A command that lets a vCPU enter the guest touches others: who ran on its thread leaves the guest, and who had the
registers of a CPU has them saved.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from host_agent import commands as c
from host_agent import migration_commands as m
from host_agent import task_commands as t
from host_agent.events import Enter, GuestEvent
from host_agent.exits import DecisionKind
from host_agent.kvm.vcpu import Vcpu
from host_agent.migrations import MigrationRole
from host_agent.service.watch.resources import HOST, names
from host_agent.state import HostState, VcpuSide, VmRecord
from host_agent.timers import next_deadline_ns


def touched(state: HostState, command: c.Command, now_ns: int) -> dict[str, None]:
    """Names of what ``command`` at ``now_ns`` may change, what is due by then included, whether it is there or not."""
    found = _Touched(state)
    found.due(max(now_ns, state.now_ns))
    _of_command(found, command)
    found.forgotten_exits(len(command.events) if isinstance(command, c.SubmitBatch) else 0)
    found.forgotten_migrations()
    return found.names


def _of_command(found: _Touched, command: c.Command) -> None:  # noqa: C901, PLR0912 -- one case a kind of command
    match command:
        case (
            c.KeepAlive()
            | c.AckDirective()
            | c.AcquireControl()
            | c.RenewControl()
            | c.ReleaseControl()
            | c.ArmFault()
            | c.DisarmFault()
            | c.ResetFaults()
            | c.RenewFaults()
            | c.HitFault()
            | c.Tick()
        ):
            pass
        case c.SetHostLimit() | c.DrainHost():
            found.add(HOST)
        case c.CreateVm(vm_id=vm_id):
            found.add(f"vms/{vm_id}", f"vms/{vm_id}/tasks/main")
        case c.UpdateVm(vm=vm):
            found.add(vm)
        case c.DeleteVm(vm=vm) | c.ResetVm(vm=vm) | c.RequestPermission(vm=vm) | c.SetCpuid(vm=vm):
            found.all_of(vm)
        case c.CreateVcpu(vm=vm, index=index):
            found.vcpu(f"{vm}/vcpus/{index}")
        case c.DeleteVcpu(vcpu=vcpu):
            found.vcpu(vcpu)
            found.session_of(vcpu)
        case c.SetXsave(vcpu=vcpu) | c.SetXcrs(vcpu=vcpu) | c.SetMsrs(vcpu=vcpu):
            found.vcpu(vcpu)
        case c.OpenSession(vcpus=vcpus):
            for vcpu in vcpus:
                found.session_of(vcpu)
        case c.CloseSession(session=session):
            found.session(session)
        case c.SubmitBatch(events=events):
            found.events(events)
        case c.ResolveExit():
            found.decision(command)
        case c.ExecTask(task=task) | c.ExitTask(task=task) | t.ArchPrctl(task=task) | c.CloneTask(task=task):
            found.all_of(task.partition("/tasks/")[0])
            if isinstance(command, c.CloneTask):
                found.add(f"{task.partition('/tasks/')[0]}/tasks/{command.task_id}")
        case c.CreateTask(vm=vm, task_id=task_id) | t.CreateWorker(vm=vm, task_id=task_id):
            found.task(f"{vm}/tasks/{task_id}")
        case (
            c.ScheduleTask(task=task)
            | c.PreemptTask(task=task)
            | c.UseFeature(task=task)
            | c.KernelFpu(task=task)
            | t.SetAltstack(task=task)
            | t.EnableShadowStack(task=task)
            | t.Interrupt(task=task)
            | t.DeliverSignal(task=task)
            | t.EditFrame(task=task)
            | t.SwapOutFrame(task=task)
            | t.SigReturn(task=task)
            | t.PtraceGet(task=task)
            | t.PtraceSet(task=task)
        ):
            found.task(task)
        case t.OfflineCpu() | t.OnlineCpu() | t.IdleCpu() | t.SuspendHost():
            found.on_cpus()
        case m.BeginMigration(vm=vm):
            found.all_of(vm)
        case m.ImportVm(migration=migration) if migration:
            found.add(migration)
        case m.StageMigration(migration=migration):
            found.add(migration)
        case m.CommitMigration(migration=migration) | m.AbortMigration(migration=migration):
            found.migration(migration)
        case _:
            found.add(*names(found.state))


class _Touched:
    """Names that are being gathered; each method adds what comes with what it is told."""

    def __init__(self, state: HostState) -> None:
        self.state = state
        #: In a dict for their order.
        self.names: dict[str, None] = {}
        self._has_cpus = False

    def add(self, *more: str) -> None:
        """These, and nothing that comes with them."""
        self.names.update(dict.fromkeys(more))

    def due(self, now_ns: int) -> None:
        """What happens by itself before the command: sessions run out, retries are made, deadlines pass."""
        first_ns = next_deadline_ns(self.state)
        if first_ns is None or first_ns > now_ns:
            return
        for session in self.state.sessions.values():
            if session.expires_ns <= now_ns:
                self.session(session.name)
        for record in self.state.exits.values():
            self.vcpu(record.vcpu)
        for migration in self.state.leaving.values():
            if migration.deadline_ns is not None and migration.deadline_ns <= now_ns:
                self.migration(migration.name)

    def all_of(self, name: str) -> None:
        """A VM with everything in it, and the sessions that have its vCPUs."""
        self.add(name)
        vm = self.state.vms.get(name)
        if vm is None:
            return
        self.add(*(f"{name}/tasks/{task}" for task in vm.tasks))
        for vcpu in vm.kvm.vcpus.values():
            self.vcpu(self.state.vcpu_name(vcpu))
            self._session_of(vcpu)
        self.on_cpus()

    def vcpu(self, name: str) -> None:
        """A vCPU with its VM, its exit, its thread and who else may be on that."""
        vm_name, _, index = name.partition("/vcpus/")
        self.add(vm_name, name)
        self.on_cpus()
        vm = self.state.vms.get(vm_name)
        vcpu = vm.kvm.vcpus.get(int(index)) if vm is not None and index.isdecimal() else None
        if vm is None or vcpu is None:
            return
        self._task(vm, f"vcpu-{index}")
        if vcpu.fpu is not None:
            self.add(vcpu.fpu.name)
        side = vcpu.agent
        if isinstance(side, VcpuSide):
            if side.task:
                self._task(vm, side.task)
            if side.exit is not None:
                self.add(side.exit.name)

    def task(self, name: str) -> None:
        """A task with its VM, whose memory it may take."""
        vm = self.state.vms.get(name.partition("/tasks/")[0])
        self.on_cpus()
        if vm is not None:
            self.add(vm.name)
            self._task(vm, name.rpartition("/")[2])

    def _task(self, vm: VmRecord, task_id: str) -> None:
        self.add(f"{vm.name}/tasks/{task_id}")
        found = vm.tasks.get(task_id)
        if found is not None and found.vcpu is not None:
            self.add(self.state.vcpu_name(found.vcpu))

    def on_cpus(self) -> None:
        """Who runs on a CPU or has its registers, and the vCPUs that they are in: another may take their place."""
        if self._has_cpus:
            return
        self._has_cpus = True
        for platform in self.state.platforms.values():
            for cpu in platform.cpus:
                for fpu in {cpu.current, cpu.owner} - {None}:
                    assert fpu is not None
                    vm_name, _, task_id = fpu.name.partition("/tasks/")
                    vm = self.state.vms.get(vm_name)
                    if vm is not None:
                        self._task(vm, task_id)

    def session(self, name: str) -> None:
        """A session that ends: its vCPUs leave the guest."""
        self.add(name)
        found = self.state.sessions.get(name)
        for vcpu in found.vcpus if found is not None else ():
            self.vcpu(vcpu)

    def session_of(self, vcpu: str) -> None:
        """The session that is about to lose a vCPU."""
        vm = self.state.vms.get(vcpu.partition("/vcpus/")[0])
        index = vcpu.rpartition("/")[2]
        found = vm.kvm.vcpus.get(int(index)) if vm is not None and index.isdecimal() else None
        if found is not None:
            self._session_of(found)

    def _session_of(self, vcpu: Vcpu) -> None:
        side = vcpu.agent
        if isinstance(side, VcpuSide) and side.session is not None:
            self.add(side.session.name)

    def events(self, events: Iterable[GuestEvent]) -> None:
        """The vCPUs that a batch is about. One that was made again counts from 1 again, and so do its exits."""
        for event in events:
            if event.vcpu not in self.names:
                self.vcpu(event.vcpu)
            again = f"{event.vcpu}/exits/{event.seq}"
            if again in self.state.resolved_exits:
                self.add(again)
            if isinstance(event.kind, Enter) and event.kind.task:
                self.task(f"{event.vcpu.partition('/vcpus/')[0]}/tasks/{event.kind.task}")

    def decision(self, command: c.ResolveExit) -> None:
        """What a decision reaches: its vCPU, its VM, limits; RECLAIM takes from whomever it finds."""
        vcpu = command.exit.partition("/exits/")[0]
        self.add(command.exit, HOST)
        match command.decision.kind:
            case DecisionKind.KILL_VM | DecisionKind.RESET_VM | DecisionKind.MIGRATE:
                self.all_of(vcpu.partition("/vcpus/")[0])
            case DecisionKind.RECLAIM if command.decision.any_victim:
                self.add(*names(self.state))
            case DecisionKind.RECLAIM:
                for name in (vcpu, *command.decision.victims):
                    self.vcpu(name)
            case _:
                self.vcpu(vcpu)

    def migration(self, name: str) -> None:
        """A migration that ends: its VM goes, or goes on, or comes over the exits that one of its name had here."""
        self.add(name)
        vm = name.partition("/migrations/")[0]
        record = self.state.migrations.get(name)
        if record is not None and record.role is MigrationRole.TARGET:
            self.add(*(each for each in self.state.resolved_exits if each.startswith(f"{vm}/")))
        else:
            self.all_of(vm)

    def forgotten_migrations(self) -> None:
        """The oldest that are over make room for those that are over now."""
        ending = sum("/migrations/" in name for name in self.names)
        if not ending:
            return
        over = [each.name for each in self.state.migrations.values() if not each.state.open]
        self.add(*over[: max(0, len(over) + ending - self.state.config.max_migrations)])

    def forgotten_exits(self, events: int) -> None:
        """The oldest settled exits make room for those that are settled now, which are so many at most."""
        state = self.state
        settled = events + sum("/exits/" in name for name in self.names)
        excess = len(state.resolved_exits) + settled - state.config.max_resolved_exits
        if excess > 0:
            self.add(*list(islice(state.resolved_exits, excess)))
