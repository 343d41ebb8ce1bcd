"""What a scenario runs in: a HostMachine, its clock and log, the sessions, and the names that commands use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fpu_core.cpu import Cpu
from fpu_core.fpstate import Fpstate
from fpu_core.fpu import Fpu
from fpu_core.invariants import check_core
from fpu_core.sched import kernel_fpu_begin, kernel_fpu_end, switch_to
from fpu_core.xfeature import XFEATURE_SSE, format_mask
from host_agent.commands import Command, Tick
from host_agent.effects import DirectiveIssued, Effect, ExitChanged, OutcomeReady
from host_agent.errors import Refused
from host_agent.exits import ExitRecord
from host_agent.kvm.vcpu import Vcpu
from host_agent.log import config_line, read_log, record_line, replay
from host_agent.machine import HostMachine
from host_agent.state import ControlRecord, HostConfig, HostState, Platform, SessionRecord, TaskRecord, VmRecord
from tests.scenarios import outcomes
from tests.scenarios.block import ScenarioError
from tests.scenarios.lanes import Lanes
from tests.scenarios.operands import Patterns
from tests.scenarios.tracer import LaneTracer

#: The core's names of the places where it can be preempted in the middle of a growth.
PREEMPT_POINTS: Final = {
    "intercept": "intercept: request set, not yet swapped out",
    "write": "intercept: the allocation may sleep",
    "realloc": "realloc: allocated, not yet locked",
}
#: PKRU of a new program.
INIT_PKRU: Final = 0x5555_5554
HOUR_NS: Final = 3600 * 1_000_000_000


@dataclass(slots=True)
class PlannedPreemption:
    """What ``preempt-at`` asked for, until it has happened."""

    where: str
    kernel_fpu: bool


@dataclass(slots=True)
class HostSide:
    """One of the hosts of a file: the machine, its log, and who holds what there."""

    machine: HostMachine
    log: list[str]
    sessions: list[SessionRecord] = field(default_factory=list)
    controls: dict[str, ControlRecord] = field(default_factory=dict)


class World:
    """One scenario's world. Commands print to ``lanes``, and happen on the host that the file is at, ``host`` first."""

    def __init__(self, policy: str = "on_swap") -> None:
        self.lanes = Lanes()
        #: The allocation policy of VMs for which the file names none.
        self.policy = policy
        self.patterns = Patterns()
        self.patterns.remember("default", INIT_PKRU.to_bytes(4, "little"))
        #: The guests' memory by name, and the name the last XSAVE instruction had.
        self.memories: dict[str, bytes] = {}
        self.memory = ""
        self.hosts: dict[str, HostSide] = {}
        self.tracing = False
        self.now_ns = 0
        self.go_to("host")
        #: Userspace buffers of XSAVE state, by the name a command gave them.
        self.buffers: dict[str, bytes] = {}
        #: Images of VMs by name, and the migrations that were begun, by the VM's id.
        self.images: dict[str, bytes] = {}
        self.migrations: dict[str, list[str]] = {}
        #: How many lines there were when the event's own had been printed.
        self.event_line = 0
        self.planned: PlannedPreemption | None = None
        #: The host task whose own code runs; None while a guest does.
        self.acting_task: TaskRecord | None = None
        self._digests: dict[str, str] = {}

    @property
    def state(self) -> HostState:
        """What the machine knows; for reading."""
        return self.machine.state

    # -- commands ------------------------------------------------------------------------------------------------------

    def go_to(self, name: str, *, profile: str = "sapphire-rapids", byte_limit: int | None = None) -> None:
        """Go to a host, which is made if it is new."""
        if name not in self.hosts:
            config = HostConfig(check_invariants=True, faults=True)
            if name != "host":
                config = replace(config, host=name, boot_id=name, default_profile=profile, byte_limit=byte_limit)
            side = self.hosts[name] = HostSide(HostMachine(config), [config_line(config)])
            side.machine.on_applied = lambda now_ns, command, _reply: side.log.append(record_line(now_ns, command))
        side = self.hosts[name]
        self.machine, self.log, self.sessions, self.controls = side.machine, side.log, side.sessions, side.controls

    def apply(self, command: Command) -> Any:  # noqa: ANN401 -- each command has its own reply
        """Carry a command out now; ``Refused`` is the caller's to print or the runner's."""
        return self.machine.apply(command, self.now_ns)

    def advance(self, duration_ns: int) -> None:
        """Let time pass; what is due happens at its own moment."""
        until = self.now_ns + duration_ns
        due = self.machine.next_deadline_ns()
        while due is not None and due <= until:
            self.now_ns = max(self.now_ns, due)
            self.apply(Tick())
            self.tell_effects()
            due = self.machine.next_deadline_ns()
        self.now_ns = until
        self.apply(Tick())
        self.tell_effects()

    def tell_effects(self, said: Iterable[object] = ()) -> None:
        """Print what the last command made known beyond its reply, each exit once and as it now is."""
        effects = self.machine.take_effects()
        last = {effect.exit: nr for nr, effect in enumerate(effects) if isinstance(effect, ExitChanged)}
        for nr, effect in enumerate(effects):
            if not isinstance(effect, ExitChanged) or last[effect.exit] == nr:
                self._tell(effect, said)

    def _tell(self, effect: Effect, said: Iterable[object]) -> None:
        match effect:
            case OutcomeReady(outcome=outcome) if outcome not in said:
                outcomes.tell_late(self, outcome)
            case ExitChanged(exit=name):
                outcomes.tell_exit(self, self.exit(name))
            case DirectiveIssued(directive=directive):
                vcpu = self.short(directive.vcpu)
                self.lanes.user(f"directive {directive.kind} for {vcpu}", directive.reason)
            case _:
                pass

    # -- names ---------------------------------------------------------------------------------------------------------

    def vm(self, vm_id: str = "") -> VmRecord:
        """A VM by id, the first for none."""
        found = self.state.vms.get(f"vms/{vm_id}") if vm_id else next(iter(self.state.vms.values()), None)
        if found is None:
            raise ScenarioError(f"there is no VM {vm_id}")
        return found

    def vcpu_name(self, text: str) -> str:
        """``0`` or ``b/0`` as a resource name."""
        vm_id, _, index = text.rpartition("/")
        return f"vms/{vm_id}/vcpus/{index}" if vm_id else f"{self.vm().name}/vcpus/{index}"

    def vcpu(self, text: str) -> Vcpu:
        """``0`` or ``b/0``."""
        vm_id, _, index = text.rpartition("/")
        found = self.vm(vm_id).kvm.vcpus.get(int(index)) if index.isdecimal() else None
        if found is None:
            raise ScenarioError(f"there is no vCPU {text}")
        return found

    def task(self, text: str) -> TaskRecord:
        """``main`` or ``b/main``."""
        vm_id, _, task_id = text.rpartition("/")
        found = self.vm(vm_id).tasks.get(task_id)
        if found is None:
            raise ScenarioError(f"there is no task {text}")
        return found

    def task_name(self, text: str) -> str:
        """``main`` or ``b/main`` as a resource name."""
        vm_id, _, task_id = text.rpartition("/")
        return f"vms/{vm_id}/tasks/{task_id}" if vm_id else f"{self.vm().name}/tasks/{task_id}"

    def exit(self, name: str) -> ExitRecord:
        """An exit, open or settled."""
        found = self.state.exits.get(name) or self.state.resolved_exits.get(name)
        if found is None:
            raise ScenarioError(f"there is no exit {self.short(name)}")
        return found

    def plain(self, text: str) -> str:
        """``text`` with ids, which are hashes, replaced by what this file calls what they are of."""
        for vm, names in self.migrations.items():
            for nr, name in enumerate(names, start=1):
                text = text.replace(f"{name!r}", f"migration {nr} of {vm}")
        for nr, session in enumerate(self.sessions, start=1):
            text = text.replace(f"session {session.name!r}", f"session {nr}")
            text = text.replace(f"{session.name!r}", f"session {nr}")
        for label, control in self.controls.items():
            text = text.replace(f"{control.name!r}", f"of {label}")
        return text

    @staticmethod
    def short(name: str) -> str:
        """A resource name as the output shows it: ``a/0``, ``a/main``, ``a/0/8``."""
        return "/".join(part for part in name.split("/") if part not in ("vms", "vcpus", "tasks", "exits"))

    def owner_of(self, fpstate: Fpstate) -> str:
        """Whose container it is: ``guest a/0``, ``user a/main``; empty for nobody's yet."""
        for vm in self.state.vms.values():
            for vcpu in vm.kvm.vcpus.values():
                buffers = vcpu.guest.buffers
                if buffers is not None and fpstate in (buffers.user_fpu, buffers.guest_fpu):
                    which = "user_fpu" if fpstate is buffers.user_fpu else "guest_fpu"
                    return f"{which} {vm.id}/{vcpu.index}"
                if vcpu.guest.fpstate is fpstate:
                    return f"guest {vm.id}/{vcpu.index}"
            for task in vm.tasks.values():
                if fpstate in (task.fpu.task_fpstate, task.fpu.embedded, task.fpu.fpstate):
                    return f"user {vm.id}/{task.id}"
        return ""

    # -- observing -----------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Hook what there is: the tracer if it is on, and the places where the core can be preempted."""
        for platform in self.state.platforms.values():
            tracer = LaneTracer(self.lanes, platform.host.config, self.owner_of) if self.tracing else None
            platform.host.tracer = tracer
            platform.host.preemptible = lambda name, platform=platform: self._preemptible(platform, name)
            for cpu in platform.cpus:
                cpu.tracer = tracer
                cpu.eager = tracer is not None or not cpu.config.compacted

    def _preemptible(self, platform: Platform, name: str) -> None:
        if name == PREEMPT_POINTS["intercept"]:
            self._tell_request()
        plan = self.planned
        if plan is not None and PREEMPT_POINTS[plan.where] == name:
            self.planned = None
            self._preempt(platform, self._acting_fpu(), plan)

    def _tell_request(self) -> None:
        vcpu = self.state.vcpu(self.state.acting_vcpu)
        request = vcpu.guest.realloc_request
        assert request is not None
        wanted = f"{format_mask(request.xfeatures)}, XFD to be {format_mask(request.xfd)}"
        self.lanes.inner(f"realloc request: {wanted}", "leave the loop, swap out")

    def _acting_fpu(self) -> Fpu:
        if self.acting_task is not None:
            return self.acting_task.fpu
        fpu = self.state.vcpu(self.state.acting_vcpu).fpu
        assert fpu is not None
        return fpu

    def _preempt(self, platform: Platform, fpu: Fpu, plan: PlannedPreemption) -> None:
        """Take the CPU away, perhaps use its registers, and give it back."""
        cpu = fpu.cpu
        assert cpu is not None
        self.lanes.inner("preempted" + (", kernel_fpu section in between" if plan.kernel_fpu else ""))
        switch_to(cpu, None)
        if plan.kernel_fpu:
            _kernel_fpu_section(cpu)
        if plan.where != "realloc":  # there the new container is nobody's yet, and the ledger knows it
            for view in self.state.core_views():
                check_core(view)
        switch_to(cpu, fpu)
        self.lanes.inner("runs again")

    def digest_label(self, text: str) -> str:
        """A letter for a digest: the same letter means the same digest."""
        return self._digests.setdefault(text, chr(ord("A") + len(self._digests)))

    # -- replay --------------------------------------------------------------------------------------------------------

    def replay(self) -> int:
        """Replay the log, through its text, on a fresh machine; returns the number of commands.

        That machine is neither traced nor preempted at ``preempt-at`` points: what tracing makes a host execute, and
        what a preemption does on the way out of the loop, changes nothing.
        """
        count = 0
        for name, side in self.hosts.items():
            config, records = read_log(side.log)
            if replay(config, records).digest() != side.machine.digest():
                raise ScenarioError(
                    f"the replay of {len(records)} commands of {name} reached another digest than the run"
                )
            count += len(records)
        return count


def _kernel_fpu_section(cpu: Cpu) -> None:
    kernel_fpu_begin(cpu)
    cpu.write_register(XFEATURE_SSE, 0, bytes([0xA5]) * 256)
    kernel_fpu_end(cpu)


def refusal(world: World, refused: Refused) -> str:
    """A refusal as the output shows it."""
    return world.plain(f"refused, {refused.reason.name}: {refused.text}")
