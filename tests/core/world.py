"""A host to play with: two processes with their vCPUs on a few CPUs, and beside it what every register must contain.

Each operation acts on the core and on the reference model; ``check`` then looks at every context *where it is* (in the
registers or in its image), without moving anything. A world is plain data, so a deep copy of it is a second history.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fault_lab.sim.register_image import in_image, in_registers
from fault_lab.sim.registers import Registers, task_registers, without_mxcsr
from fpu_core.alloc import Account, Allocator, AllocFailure
from fpu_core.config import FpuConfig, boot
from fpu_core.context import fpregs_state_valid, running_cpu
from fpu_core.cpu import Cpu, Vector
from fpu_core.cpuid import builtin_profile
from fpu_core.errors import Errno
from fpu_core.fpstate import Fpstate
from fpu_core.fpu import Fpu, FpuHost
from fpu_core.guest import update_guest_xfd
from fpu_core.invariants import INVARIANTS, CoreView, Invariant, PermissionHistory, ledger_balances
from fpu_core.layout import MXCSR_OFFSET
from fpu_core.permission import request_permission
from fpu_core.realloc import Reallocated
from fpu_core.rt_signal import SignalFrame
from fpu_core.rules import KERNEL_6_18, KernelRules
from fpu_core.sched import (
    IrqContext,
    irq_fpu_usable,
    kernel_fpu_begin,
    kernel_fpu_end,
    read_pkru,
    switch_fpu_return,
    switch_to,
)
from fpu_core.task import Signal, clone_task, exec_task, exit_task, use_feature
from fpu_core.tile import TileOp, load_tile, parse_tilecfg
from fpu_core.xfeature import (
    MSR_IA32_XFD,
    XFEATURE_FP,
    XFEATURE_MASK_USER_DYNAMIC,
    XFEATURE_PKRU,
    XFEATURE_SSE,
    XFEATURE_XTILE_DATA,
    for_each_set_bit,
)
from host_agent.kvm import intercept
from host_agent.kvm.growth import needs_action
from host_agent.kvm.lifecycle import VcpuEvent, VcpuState
from host_agent.kvm.outcome import Done, Inject, Intercepted, PendingWrite, ReallocExit
from host_agent.kvm.policy import allocation_policy
from host_agent.kvm.run import vcpu_enter, vcpu_leave
from host_agent.kvm.set_cpuid import set_cpuid2
from host_agent.kvm.vcpu import KvmVm, Vcpu, create_vcpu, destroy_vcpu, reset_vcpu
from tests.core.snapshot import snapshot

PROCESSES = ("a", "b")


@dataclass
class Guest:
    """A vCPU, what its registers must contain, and the write it is parked on."""

    name: str
    vcpu: Vcpu
    regs: Registers
    parked_on: PendingWrite | None = None
    #: It has been in the guest: another CPUID is no longer for it.
    has_run: bool = False

    @property
    def confidential(self) -> bool:
        """Whether the registers are the firmware's, so that nothing is known about them."""
        return self.vcpu.fpstate.is_confidential


@dataclass
class Task:
    """A host task and what its registers must contain; below a signal handler, what they contained before."""

    fpu: Fpu
    regs: Registers
    frames: list[tuple[SignalFrame, Registers]] = field(default_factory=list)


@dataclass
class Ambush:
    """What happens at the next place where the kernel can be preempted: ``intruder`` runs there and loads ``data``.

    The preempted task goes on on CPU ``resume_on`` afterwards.
    """

    intruder: str
    data: bytes
    resume_on: int


@dataclass
class World:
    """The host, the processes, and the books."""

    config: FpuConfig
    allocator: Allocator = field(default_factory=Allocator)
    vms: dict[str, KvmVm] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    guests: dict[str, Guest] = field(default_factory=dict)
    ambushes: list[Ambush] = field(default_factory=list)
    #: Kernel threads and user workers by name.
    workers: dict[str, Fpu] = field(default_factory=dict)
    fail_next: bool = False
    #: The task that executes now: whom a preemption takes the CPU from.
    executing: Fpu | None = None
    host: FpuHost = field(init=False)
    cpus: list[Cpu] = field(init=False)
    permissions: PermissionHistory = field(init=False)
    #: What was reached, for the tests that must prove it was.
    reached: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.host = FpuHost(self.config, self.allocator, preemptible=self._preempted)
        self.allocator.should_fail = self._should_fail
        self.cpus = [Cpu(nr, self.config) for nr in range(2)]
        for cpu in self.cpus:
            cpu.interrupted = _hard_interrupt
        self.permissions = PermissionHistory(self.config.rules.perm_loses_supervisor, self.config.rules.user_supported)

    @classmethod
    def create(
        cls, profile: str = "sapphire-rapids", policy: str = "on_swap", *, rules: KernelRules = KERNEL_6_18
    ) -> World:
        """Two processes of two threads each; nobody runs."""
        world = cls(boot(builtin_profile(profile), rules))
        for name in PROCESSES:
            account = Account(f"vms/{name}", world.allocator.host)
            leader = world.add_task(Fpu(world.host, f"{name}/main", account=account))
            world.vms[name] = KvmVm(world.host, account, leader.fpu, allocation_policy(policy))
            world.add_task(Fpu(world.host, f"{name}/vcpu", account=account, leader=leader.fpu))
        return world

    def add_task(self, fpu: Fpu, regs: Registers | None = None) -> Task:
        """Enter a task that has not run yet."""
        fpu.need_load = True
        task = self.tasks[fpu.name] = Task(fpu, regs if regs is not None else task_registers(self.config))
        return task

    def twin(self) -> World:
        """A second history of the same world; the configuration, which never changes, is shared."""
        return copy.deepcopy(self, {id(self.config): self.config})

    # -- faults and preemption ---------------------------------------------------------------------------------------

    def _should_fail(self, _point: str, _account: str, _size_bytes: int) -> Errno:
        failed, self.fail_next = self.fail_next, False
        return Errno.ENOMEM if failed else Errno.OK

    def _preempted(self, _where: str) -> None:
        """The scheduler takes the CPU in the middle of an operation, and gives one back."""
        fpu = self.executing
        if fpu is None or not self.ambushes:
            return
        self.reached.add("preempted in the middle")
        ambush = self.ambushes.pop()
        intruder = self.tasks.get(ambush.intruder)
        if intruder is None or intruder.fpu is fpu:
            switch_to(running_cpu(fpu), None)
        else:
            switch_to(running_cpu(fpu), intruder.fpu)
            self._scribble(intruder, ambush.data)
        # What is being allocated is charged and not yet anybody's: the one thing that does not hold in the middle.
        self.check(except_for=(ledger_balances,))
        switch_to(self.cpus[ambush.resume_on], fpu)

    def _scribble(self, task: Task, data: bytes) -> None:
        """A task that has just got a CPU uses it, in user mode or in its guest."""
        guest = self.guest_of(task.fpu)
        if guest is None:
            use_feature(task.fpu, XFEATURE_SSE, 0, data)
            task.regs.write(XFEATURE_SSE, 0, data)
        elif isinstance(intercept.write_register(guest.vcpu, feature=XFEATURE_SSE, offset=0, data=data), Done):
            guest.regs.write(XFEATURE_SSE, 0, data)

    # -- tasks -------------------------------------------------------------------------------------------------------

    def guest_of(self, fpu: Fpu) -> Guest | None:
        """The vCPU in whose KVM_RUN the task is."""
        return next((guest for guest in self.guests.values() if guest.vcpu.fpu is fpu), None)

    def run(self, fpu: Fpu, cpu: int) -> None:
        """Let the task execute: on the CPU it has, else on ``cpu``."""
        if fpu.cpu is None:
            switch_to(self.cpus[cpu], fpu)
        self.executing = fpu

    def user_write(self, task: Task, nr: int, offset: int, data: bytes) -> Vector | Signal | Reallocated | None:
        """User code of a running task loads a register, with the growth its #NM brings."""
        fpu = task.fpu
        grown = bool(fpu.fpstate.xfeatures >> nr & 1) or nr == XFEATURE_PKRU
        result = use_feature(fpu, nr, offset, data)
        if isinstance(result, Signal):
            assert not grown, f"{fpu.name} has room for {nr} and got {result}"
            permitted = bool(fpu.leader.perm.state_perm & XFEATURE_MASK_USER_DYNAMIC)
            assert (result is Signal.SIGSEGV) == permitted, f"{result}, permitted {permitted}"
            self.reached.add(f"task {result.value}")
        elif result is None or isinstance(result, Reallocated):
            assert (result is not None) == (not grown)
            self.reached.add("task grown" if result is not None else "task write")
            _load(task.regs, nr, offset, data)
        return result

    def user_read(self, task: Task) -> None:
        """User code of a running task reads all it may."""
        switch_fpu_return(task.fpu)
        cpu = running_cpu(task.fpu)
        found, mxcsr = in_registers(cpu)
        task.regs.seen_all(found, mxcsr, hidden=cpu.xfd, who=task.fpu.name)
        if self.config.user.max_features >> XFEATURE_PKRU & 1:
            _seen_pkru(task.regs, cpu.read_register(XFEATURE_PKRU), task.fpu.name)

    def clone(self, parent: Task, name: str, *, thread: bool) -> Task:
        """clone(2) by a running task."""
        child = clone_task(parent.fpu, name, thread=thread)
        return self.add_task(child, parent.regs.cloned())

    def execute(self, task: Task) -> None:
        """execve(2) by a task that is alone in its process."""
        exec_task(task.fpu)
        task.frames.clear()
        self.permissions.forget(task.fpu)
        task.regs = task_registers(self.config)

    def exit(self, task: Task) -> None:
        """The task ends."""
        exit_task(task.fpu)
        self.permissions.forget(task.fpu)
        del self.tasks[task.fpu.name]
        self.executing = None

    def request(self, process: str, *, guest: bool) -> Errno:
        """arch_prctl(ARCH_REQ_XCOMP_PERM or _GUEST_PERM, XTILE_DATA) of a process."""
        return request_permission(self.vms[process].leader, XFEATURE_XTILE_DATA, guest=guest)

    def kernel_fpu(self, cpu: Cpu, data: bytes) -> None:
        """A kernel_fpu section that leaves its bytes in every register it may touch."""
        kernel_fpu_begin(cpu)
        for nr in for_each_set_bit(cpu.xcr0 & ~cpu.xfd & self.config.user.max_features):
            if nr != XFEATURE_PKRU:
                cpu.write_register(nr, 0, data[:16])
        kernel_fpu_end(cpu)

    # -- vCPUs -------------------------------------------------------------------------------------------------------

    def create_vcpu(self, process: str, index: int, *, confidential: bool = False) -> Guest | AllocFailure | Errno:
        """KVM_CREATE_VCPU."""
        vcpu = create_vcpu(self.vms[process], index, confidential=confidential)
        if isinstance(vcpu, AllocFailure | Errno):
            self.reached.add("vcpu not created")
            return vcpu
        name = f"{process}/{index}"
        guest = self.guests[name] = Guest(name, vcpu, Registers(self.config))
        return guest

    def destroy(self, guest: Guest) -> None:
        """The vCPU, which is outside, goes."""
        destroy_vcpu(guest.vcpu)
        del self.guests[guest.name]

    def set_cpuid(self, guest: Guest, xcr0: int) -> Errno:
        """KVM_SET_CPUID2 of a vCPU that has not run."""
        before = guest.vcpu.guest_supported_xcr0, guest.vcpu.fpstate
        errno = set_cpuid2(guest.vcpu, guest.vcpu.vm.masked_cpuid(xcr0))
        if errno is Errno.OK:
            assert guest.vcpu.guest_supported_xcr0 == xcr0
        else:
            assert (guest.vcpu.guest_supported_xcr0, guest.vcpu.fpstate) == before, "a refused CPUID left a trace"
            self.reached.add(f"cpuid {errno.name}")
        return errno

    def enter(self, guest: Guest, fpu: Fpu) -> AllocFailure | None:
        """KVM_RUN; a parked vCPU goes on without its instruction."""
        failure = vcpu_enter(guest.vcpu, fpu)
        if failure is not None:
            self.reached.add("KVM_RUN ENOMEM")
            return failure
        guest.parked_on, guest.has_run = None, True
        return None

    def leave(self, guest: Guest) -> None:
        """KVM_RUN returns."""
        assert vcpu_leave(guest.vcpu) is None

    def reset(self, guest: Guest) -> None:
        """RESET of a vCPU that is outside."""
        reset_vcpu(guest.vcpu)
        guest.regs, guest.parked_on = Registers(self.config), None

    def xsetbv(self, guest: Guest, value: int) -> Intercepted:
        """XSETBV 0 in the guest."""
        return self._write(guest, lambda g: intercept.handle_xsetbv(g.vcpu, index=0, value=value), value, None)

    def wrmsr_xfd(self, guest: Guest, value: int) -> Intercepted:
        """WRMSR IA32_XFD in the guest."""
        return self._write(guest, lambda g: intercept.handle_wrmsr(g.vcpu, msr=MSR_IA32_XFD, value=value), None, value)

    def retry(self, guest: Guest, fpu: Fpu) -> Intercepted:
        """A parked vCPU executes its instruction again."""
        write = guest.parked_on
        assert write is not None
        assert vcpu_enter(guest.vcpu, fpu) is None
        guest.parked_on = None
        return self._write(guest, lambda g: g.vcpu.vm.policy.execute_write(g.vcpu, write), write.xcr0, write.xfd)

    def _write(
        self, guest: Guest, act: Callable[[Guest], Intercepted], xcr0: int | None, xfd: int | None
    ) -> Intercepted:
        """A write that may need growth. If growing fails, compare with the swap that had no request."""
        vcpu = guest.vcpu
        before = vcpu.xcr0, vcpu.fpstate.xfd
        new_xcr0 = before[0] if xcr0 is None else xcr0
        new_xfd = before[1] if xfd is None else xfd
        missing = needs_action(vcpu, xcr0=new_xcr0, xfd=new_xfd)
        twin = self.twin() if missing else None
        result = act(guest)
        if isinstance(result, Inject):
            assert (vcpu.xcr0, vcpu.fpstate.xfd) == before, "a refused write committed something"
        elif isinstance(result, ReallocExit):
            assert twin is not None, "an exit although nothing was missing"
            guest.parked_on = result.write
            self.reached.add(f"exit {result.failed.errno.name}")
            _same_as_without_request(self, twin, guest.name)
        else:
            assert (result.reallocated is not None) == bool(missing)
            assert (vcpu.xcr0, vcpu.fpstate.xfd) == (new_xcr0, new_xfd)
            if result.reallocated is not None:
                self.reached.add("guest grown")
            if new_xfd & ~before[1]:
                guest.regs.hide_tiles()
        return result

    def xfd_sync(self, guest: Guest, xfd: int) -> None:
        """A VM exit after the guest wrote XFD without being intercepted."""
        before = guest.vcpu.fpstate.xfd
        intercept.handle_xfd_sync(guest.vcpu, xfd=xfd)
        if xfd & ~before:
            guest.regs.hide_tiles()

    def host_sets_xfd(self, guest: Guest, xfd: int) -> None:
        """A host-initiated XFD write on a vCPU that is outside and has the room for it."""
        before = guest.vcpu.fpstate.xfd
        update_guest_xfd(None, guest.vcpu.guest, xfd)
        if xfd & ~before:
            guest.regs.hide_tiles()

    def guest_write(self, guest: Guest, nr: int, offset: int, data: bytes) -> Done | Inject:
        """The guest loads a register."""
        fault = self.expected_fault(guest, nr)
        result = intercept.write_register(guest.vcpu, feature=nr, offset=offset, data=data)
        if isinstance(result, Done):
            assert fault is None, f"{guest.name}: component {nr} should have raised {fault}"
            _load(guest.regs, nr, offset, data)
        elif fault is not None:
            assert result.vector is fault
        else:
            assert result.vector is Vector.GP, "nothing else is wrong with it"
        return result

    def guest_read(self, guest: Guest) -> None:
        """The guest reads all it may."""
        for nr in for_each_set_bit(self.vms[PROCESSES[0]].supported_xcr0):
            size = self.config.table.size_bytes(nr)
            fault = self.expected_fault(guest, nr)
            result = intercept.read_register(guest.vcpu, feature=nr, offset=0, length=size)
            if isinstance(result, Inject):
                assert result.vector is fault, f"{guest.name}: component {nr} raised {result}, not {fault}"
            elif not guest.confidential:
                assert fault is None
                self._guest_saw(guest, nr, result.data)

    def _guest_saw(self, guest: Guest, nr: int, raw: bytes) -> None:
        if nr == XFEATURE_PKRU:
            _seen_pkru(guest.regs, raw, guest.name)
            return
        guest.regs.seen(nr, raw, who=guest.name)
        if nr == XFEATURE_FP:
            mxcsr = int.from_bytes(raw[MXCSR_OFFSET : MXCSR_OFFSET + 4], "little")
            assert mxcsr == guest.regs.mxcsr, f"{guest.name}: MXCSR {mxcsr:#x}, loaded was {guest.regs.mxcsr:#x}"

    def expected_fault(self, guest: Guest, nr: int) -> Vector | None:
        """What the guest's use of component ``nr`` must raise."""
        needed = 0b11 << 17 if nr in (17, 18) else (1 << nr if nr > 1 else 0)
        if needed & ~guest.vcpu.xcr0:
            return Vector.UD
        return Vector.NM if guest.vcpu.fpstate.xfd >> nr & 1 else None

    def tile(self, guest: Guest, op: TileOp, tile: int, memory: bytes) -> Done | Inject:
        """A tile instruction in the guest."""
        result = intercept.execute_tile(guest.vcpu, op=op, tile=tile, memory=memory)
        if isinstance(result, Inject):
            return result
        if op in (TileOp.LDTILECFG, TileOp.TILERELEASE):
            guest.regs.release_tiles()
            if op is TileOp.LDTILECFG and memory[0]:
                guest.regs.write(17, 0, memory)
        elif op in (TileOp.TILELOADD, TileOp.TILEZERO):
            self._tile_loaded(guest, op, tile, memory)
        elif op is TileOp.TILESTORED and not guest.confidential:
            wanted = [each[tile * 1024 : (tile + 1) * 1024] for each in guest.regs.expected(18)]
            assert result.data in wanted, f"{guest.name}: tile {tile} stores what was never loaded"
        return result

    def _tile_loaded(self, guest: Guest, op: TileOp, tile: int, memory: bytes) -> None:
        config = parse_tilecfg(guest.regs.expected(17)[0])
        assert guest.confidential or (config is not None and config.shapes[tile].rows)
        if config is None or guest.confidential:
            return
        loaded = []
        for before in guest.regs.expected(18):
            old = before[tile * 1024 : (tile + 1) * 1024]
            new = (
                bytes(1024) if op is TileOp.TILEZERO else load_tile(config.shapes[tile], config.start_row, old, memory)
            )
            loaded.append(before[: tile * 1024] + new + before[(tile + 1) * 1024 :])
        guest.regs.candidates[18] = loaded

    # -- looking -----------------------------------------------------------------------------------------------------

    def view(self) -> CoreView:
        """What the invariants of the core talk about."""
        return CoreView(
            host=self.host,
            cpus=self.cpus,
            fpus=[*(task.fpu for task in self.tasks.values()), *self.workers.values()],
            guests=[(guest.vcpu.guest, guest.vcpu.vm.account) for guest in self.guests.values()],
            accounts=[*(vm.account for vm in self.vms.values()), self.allocator.host],
        )

    def check(self, except_for: tuple[Invariant, ...] = ()) -> None:
        """Every invariant of the core, and every byte of every context."""
        view = self.view()
        for invariant in INVARIANTS:
            broken = [] if invariant in except_for else list(invariant(view))
            assert not broken, f"{invariant.__name__}: {broken}"
        self.permissions.check(task.fpu for task in self.tasks.values())
        for name, container, fpu, regs in self._contexts():
            live = fpu is not None and fpu.fpstate is container and not fpu.need_load
            cpu = fpu.cpu if fpu is not None else None
            found, mxcsr = in_registers(cpu) if live and cpu is not None else in_image(self.config, container)
            regs.seen_all(found, mxcsr, hidden=container.xfd, who=name)
        for task in self.tasks.values():
            self._lazily_valid(task.fpu)
            self._check_pkru(task)
        for guest in self.guests.values():
            known = guest.vcpu.pkru if guest.confidential else guest.regs.pkru
            assert guest.vcpu.pkru == known, f"{guest.name}: PKRU {guest.vcpu.pkru:#x}, loaded was {known:#x}"

    def _check_pkru(self, task: Task) -> None:
        """PKRU is switched eagerly: in the register while the task runs, beside it while it does not."""
        now = task.fpu.pkru if task.fpu.cpu is None else read_pkru(task.fpu.cpu)
        assert now == task.regs.pkru, f"{task.fpu.name}: PKRU {now:#x}, loaded was {task.regs.pkru:#x}"

    def _contexts(self) -> Iterator[tuple[str, Fpstate, Fpu | None, Registers]]:
        for name, task in self.tasks.items():
            own = task.fpu.task_fpstate if task.fpu.task_fpstate is not None else task.fpu.fpstate
            yield name, own, task.fpu, task.regs
        for name, guest in self.guests.items():
            if not guest.confidential:
                yield name, guest.vcpu.fpstate, guest.vcpu.fpu, guest.regs

    def _lazily_valid(self, fpu: Fpu) -> None:
        """Registers that a task may take up again without a restore hold exactly its image, under its XFD."""
        for cpu in self.cpus:
            if not (fpu.need_load and fpregs_state_valid(fpu, cpu)) or fpu.fpstate.is_confidential:
                continue
            assert cpu.xfd == fpu.fpstate.xfd, f"{fpu.name} would go on under XFD {cpu.xfd:#x}"
            image, mxcsr = in_image(self.config, fpu.fpstate)
            held, held_mxcsr = in_registers(cpu)
            for table in (image, held):
                table.pop(XFEATURE_PKRU, None)
            zero = Registers(self.config)
            for nr in zero.features():
                if not cpu.xfd >> nr & 1:
                    ours, theirs = image.get(nr, zero.init(nr)), held.get(nr, zero.init(nr))
                    assert without_mxcsr(nr, ours) == without_mxcsr(nr, theirs), f"{fpu.name}: stale component {nr}"
            assert mxcsr == held_mxcsr


def _hard_interrupt(cpu: Cpu) -> None:
    """Every save and restore is hit by an interrupt whose code would like to use the FPU."""
    if irq_fpu_usable(cpu, IrqContext.HARDIRQ):
        kernel_fpu_begin(cpu, IrqContext.HARDIRQ)
        cpu.write_register(XFEATURE_SSE, 0, b"interrupt")
        kernel_fpu_end(cpu)


def _load(regs: Registers, nr: int, offset: int, data: bytes) -> None:
    if nr == XFEATURE_FP and offset == MXCSR_OFFSET:
        regs.mxcsr = int.from_bytes(data, "little")
    else:
        regs.write(nr, offset, data)


def _seen_pkru(regs: Registers, raw: bytes, who: str) -> None:
    """PKRU reads back; its upper half is reserved, so only what this context itself put there may show."""
    assert int.from_bytes(raw[:4], "little") == regs.pkru, f"{who}: PKRU {raw.hex()}, loaded was {regs.pkru:#x}"


# -- a failed growth against the swap without a request ----------------------------------------------------------------


def _same_as_without_request(world: World, twin: World, name: str) -> None:
    """Let the twin leave without a request, and compare everything but counters."""
    guest = twin.guests[name]
    twin.host.preempt_point("the same place")
    assert vcpu_leave(guest.vcpu) is None
    guest.vcpu.move(VcpuEvent.FAILED)
    ours, theirs = snapshot(world), snapshot(twin)
    keys = ours.keys() | theirs.keys()
    differing = {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}
    assert not differing, f"a failed growth left a trace: {differing}"


def is_outside(guest: Guest) -> bool:
    """Whether the vCPU's container is not in use."""
    return guest.vcpu.state in (VcpuState.OUTSIDE, VcpuState.PARKED)
