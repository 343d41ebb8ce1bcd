"""Whatever happens in whatever order, every context reads back what it loaded, and every invariant holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import pytest
from hypothesis import event, note
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from fpu_core.errors import Errno
from fpu_core.layout import MXCSR_OFFSET
from fpu_core.sched import switch_to
from fpu_core.tile import TILE_BYTES, TILE_COUNT, TileOp
from fpu_core.xfeature import (
    XFEATURE_MASK_AVX512,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_PKRU,
    XFEATURE_MASK_XTILE,
    XFEATURE_MASK_XTILE_DATA,
    XFEATURE_MASK_YMM,
    XFEATURE_PKRU,
)
from host_agent.kvm import intercept
from host_agent.kvm.growth import needs_action
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.outcome import Inject
from host_agent.kvm.set_cpuid import set_vm_cpuid
from tests.core import profiles
from tests.core.life_rules import LifeRules
from tests.core.samples import random_bytes, tilecfg
from tests.core.world import PROCESSES, Ambush, Guest, Task, World, is_outside

profiles.load_profile()

T = TypeVar("T")

#: XCR0 values that are all legal here, from x87 alone to everything, so that growth is asked for often.
XCR0_VALUES = (
    0x1,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_FPSSE | XFEATURE_MASK_YMM,
    XFEATURE_MASK_FPSSE | XFEATURE_MASK_YMM | XFEATURE_MASK_AVX512,
    XFEATURE_MASK_FPSSE | XFEATURE_MASK_XTILE,
    XFEATURE_MASK_FPSSE | XFEATURE_MASK_YMM | XFEATURE_MASK_AVX512 | XFEATURE_MASK_PKRU | XFEATURE_MASK_XTILE,
)
COMPONENTS = (0, 1, 2, 5, 6, 7, 9, 17, 18)


@dataclass(frozen=True)
class Trouble:
    """An allocation that fails, and a task that runs wherever the kernel can be preempted meanwhile."""

    fails: bool
    intruder: int | None
    resume_on: int
    seed: int


index = st.integers(0, 7)
cpu_nr = st.integers(0, 1)
#: Random bytes come from a seed: a failing example then shrinks to a number, and no two writes look alike.
seeds = st.integers(0, 2**32)
#: What goes wrong in the middle of an operation that may allocate: the allocation fails, or somebody takes the CPU.
troubles = st.builds(
    Trouble,
    fails=st.sampled_from([False, False, True]),
    intruder=st.none() | index,
    resume_on=cpu_nr,
    seed=seeds,
)


_NO_TROUBLE = Trouble(fails=False, intruder=None, resume_on=0, seed=0)


class CoreMachine(LifeRules):
    """Tasks and vCPUs of two processes on two CPUs do everything they can do."""

    policy = "on_swap"

    def __init__(self) -> None:
        super().__init__()
        self.world = World.create(policy=self.policy)
        self.clones = 0

    @initialize(
        host=st.booleans(),
        guest=st.sampled_from([True, True, False]),
        vcpus=st.integers(0, 3),
        amx=st.booleans(),
        cpuid=st.sampled_from([True, True, False]),
        cpu=cpu_nr,
    )
    def start(self, host: bool, guest: bool, vcpus: int, amx: bool, cpuid: bool, cpu: int) -> None:
        """Most runs begin where it gets interesting: permissions granted, a vCPU or two in the guest."""
        for process in PROCESSES:
            if host:
                self.world.request(process, guest=False)
            if guest:
                self.world.request(process, guest=True)
            if cpuid:
                vm = self.world.vms[process]
                assert set_vm_cpuid(vm, vm.masked_cpuid(vm.supported_xcr0)) is Errno.OK
        for nr in range(vcpus):
            made = self.world.create_vcpu(PROCESSES[nr % 2], nr // 2)
            if isinstance(made, Guest):
                self.enter(0, nr // 2, cpu, _NO_TROUBLE)
                self.boot(made, tiles=amx and guest, seed=nr, cpu=cpu)

    def boot(self, guest: Guest, *, tiles: bool, seed: int, cpu: int) -> None:
        """A guest that has just entered enables what it may, and perhaps configures its tiles and loads one."""
        if guest.vcpu.fpu is None:
            return
        self.world.run(guest.vcpu.fpu, cpu)
        self.world.xsetbv(guest, XCR0_VALUES[-1] if tiles else XCR0_VALUES[-1] & ~XFEATURE_MASK_XTILE)
        if not tiles:
            return
        self.world.tile(guest, TileOp.LDTILECFG, 0, tilecfg(16, 64))
        self.world.tile(guest, TileOp.TILELOADD, 1, random_bytes(seed, TILE_BYTES))

    def prepare(self, trouble: Trouble) -> None:
        """Arrange for what is to go wrong in the operation that follows."""
        self.world.fail_next = trouble.fails
        if trouble.intruder is not None:
            intruder = self.task(trouble.intruder).fpu.name
            self.world.ambushes = [Ambush(intruder, random_bytes(trouble.seed, 16), trouble.resume_on)] * 2

    # -- choosing ------------------------------------------------------------------------------------------------------

    def task(self, nr: int) -> Task:
        """Any task."""
        return _pick(list(self.world.tasks.values()), nr)

    def user(self, nr: int, cpu: int) -> Task | None:
        """A task in user mode, running."""
        users = [task for task in self.world.tasks.values() if task.fpu.task_fpstate is None]
        if not users:
            return None
        task = _pick(users, nr)
        self.world.run(task.fpu, cpu)
        return task

    def entered(self, nr: int, cpu: int) -> Guest:
        """A vCPU in the guest, its thread running."""
        guest = _pick([each for each in self.world.guests.values() if each.vcpu.state is VcpuState.ENTERED], nr)
        assert guest.vcpu.fpu is not None
        self.world.run(guest.vcpu.fpu, cpu)
        return guest

    def outside(self, nr: int) -> Guest:
        """A vCPU that is not in the guest."""
        return _pick([each for each in self.world.guests.values() if is_outside(each)], nr)

    def thread_for(self, guest: Guest, nr: int, cpu: int) -> Task | None:
        """A thread of the vCPU's process that is in no KVM_RUN, running."""
        leader = guest.vcpu.vm.leader
        free = [
            each for each in self.world.tasks.values() if each.fpu.leader is leader and each.fpu.task_fpstate is None
        ]
        if not free:
            return None
        task = _pick(free, nr)
        self.world.run(task.fpu, cpu)
        return task

    def any_outside(self) -> bool:
        """Whether a vCPU is outside the guest."""
        return any(is_outside(each) for each in self.world.guests.values())

    def any_entered(self) -> bool:
        """Whether a vCPU is in the guest."""
        return any(each.vcpu.state is VcpuState.ENTERED for each in self.world.guests.values())

    # -- vCPUs ---------------------------------------------------------------------------------------------------------

    @rule(
        process=st.sampled_from(PROCESSES),
        nr=st.integers(0, 2),
        confidential=st.sampled_from([False, False, True]),
        fails=st.sampled_from([False, False, True]),
    )
    def create_vcpu(self, process: str, nr: int, confidential: bool, fails: bool) -> None:
        """KVM_CREATE_VCPU on a thread that need not be the one to run it."""
        self.world.fail_next = fails
        if f"{process}/{nr}" not in self.world.guests:
            self.world.create_vcpu(process, nr, confidential=confidential)

    @precondition(any_outside)
    @rule(nr=index)
    def destroy_vcpu(self, nr: int) -> None:
        """The vCPU goes and gives its container back."""
        self.world.destroy(self.outside(nr))

    @precondition(any_outside)
    @rule(nr=index, xcr0=st.sampled_from([XCR0_VALUES[-1], XCR0_VALUES[-1], XCR0_VALUES[-3]]), fails=st.booleans())
    def set_cpuid(self, nr: int, xcr0: int, fails: bool) -> None:
        """KVM_SET_CPUID2 of one vCPU before its first run: some policies allocate there."""
        guest = self.outside(nr)
        self.world.fail_next = fails
        if not guest.has_run:
            self.world.set_cpuid(guest, xcr0)

    @precondition(any_outside)
    @rule(nr=index, thread=index, cpu=cpu_nr, trouble=troubles)
    def enter(self, nr: int, thread: int, cpu: int, trouble: Trouble) -> None:
        """KVM_RUN on any thread of the process; with three buffers, the thread's own image may have to grow."""
        guest = self.outside(nr)
        task = self.thread_for(guest, thread, cpu)
        if task is not None:
            self.prepare(trouble)
            self.world.enter(guest, task.fpu)

    @precondition(any_entered)
    @rule(nr=index, cpu=cpu_nr)
    def leave(self, nr: int, cpu: int) -> None:
        """KVM_RUN returns."""
        self.world.leave(self.entered(nr, cpu))

    @precondition(any_outside)
    @rule(nr=index, thread=index, cpu=cpu_nr, trouble=troubles)
    def retry(self, nr: int, thread: int, cpu: int, trouble: Trouble) -> None:
        """The controller says RETRY: the instruction executes again in a new KVM_RUN."""
        parked = [each for each in self.world.guests.values() if each.parked_on is not None]
        if not parked:
            return
        guest = _pick(parked, nr)
        task = self.thread_for(guest, thread, cpu)
        if task is not None:
            self.prepare(trouble)
            self.world.retry(guest, task.fpu)

    @precondition(any_outside)
    @rule(nr=index)
    def reset(self, nr: int) -> None:
        """RESET: registers in their init state, XFD = 0, XCR0 = 1."""
        self.world.reset(self.outside(nr))

    @precondition(any_outside)
    @rule(nr=index, value=st.sampled_from([0, XFEATURE_MASK_XTILE_DATA]))
    def host_sets_xfd(self, nr: int, value: int) -> None:
        """KVM_SET_MSRS of XFD on a vCPU that is not in the guest, where no growth would be needed."""
        guest = self.outside(nr)
        if not needs_action(guest.vcpu, xcr0=guest.vcpu.xcr0, xfd=value) and guest.parked_on is None:
            self.world.host_sets_xfd(guest, value)

    # -- the guest -----------------------------------------------------------------------------------------------------

    @precondition(any_entered)
    @rule(nr=index, cpu=cpu_nr, value=st.sampled_from([*XCR0_VALUES, *XCR0_VALUES[-2:]]), trouble=troubles)
    def xsetbv(self, nr: int, cpu: int, value: int, trouble: Trouble) -> None:
        """XSETBV of a legal value: it may need growth, which may fail."""
        guest = self.entered(nr, cpu)
        self.prepare(trouble)
        self.world.xsetbv(guest, value)

    @precondition(any_entered)
    @rule(nr=index, cpu=cpu_nr, value=st.sampled_from([0x0, 0x5, 0x43, 0x40003, 0x20003, 1 << 40]))
    def bad_xsetbv(self, nr: int, cpu: int, value: int) -> None:
        """XSETBV of a value the rules forbid: #GP, and nothing else."""
        assert isinstance(self.world.xsetbv(self.entered(nr, cpu), value), Inject)

    @precondition(any_entered)
    @rule(nr=index, cpu=cpu_nr, value=st.sampled_from([0, XFEATURE_MASK_XTILE_DATA]), trouble=troubles)
    def wrmsr_xfd(self, nr: int, cpu: int, value: int, trouble: Trouble) -> None:
        """WRMSR IA32_XFD: clearing the bit may need growth, which may fail."""
        guest = self.entered(nr, cpu)
        self.prepare(trouble)
        self.world.wrmsr_xfd(guest, value)

    @precondition(any_entered)
    @rule(nr=index, cpu=cpu_nr, value=st.sampled_from([XFEATURE_MASK_XTILE, 1, 1 << 63]))
    def bad_wrmsr_xfd(self, nr: int, cpu: int, value: int) -> None:
        """WRMSR IA32_XFD of bits it has not: #GP, and nothing else."""
        assert isinstance(self.world.wrmsr_xfd(self.entered(nr, cpu), value), Inject)

    @precondition(any_entered)
    @rule(nr=index, cpu=cpu_nr, value=st.sampled_from([0, XFEATURE_MASK_XTILE_DATA]))
    def xfd_sync(self, nr: int, cpu: int, value: int) -> None:
        """The guest wrote XFD without an exit, where that is allowed."""
        guest = self.entered(nr, cpu)
        if guest.vcpu.xfd_passthrough:
            self.world.xfd_sync(guest, value)

    @precondition(any_entered)
    @rule(nr=index, cpu=cpu_nr, cr0_ts=st.booleans())
    def nm_exit(self, nr: int, cpu: int, cr0_ts: bool) -> None:
        """#NM: recorded and injected, never an allocation."""
        guest = self.entered(nr, cpu)
        used, before = self.world.allocator.host.allocations, guest.vcpu.guest.xfd_err
        injected = intercept.handle_nm(guest.vcpu, cr0_ts=cr0_ts)
        assert self.world.allocator.host.allocations == used
        assert not cr0_ts or injected.xfd_err == before

    @precondition(any_entered)
    @rule(nr=index, cpu=cpu_nr, component=st.sampled_from(COMPONENTS), where=seeds, seed=seeds)
    def guest_writes(self, nr: int, cpu: int, component: int, where: int, seed: int) -> None:
        """The guest loads random bytes somewhere into a register."""
        offset, length = _span(component, where, self.world.config.table.size_bytes(component))
        self.world.guest_write(self.entered(nr, cpu), component, offset, random_bytes(seed, length))

    @precondition(any_entered)
    @rule(nr=index, cpu=cpu_nr, value=st.sampled_from([0x1F80, 0x1FA0, 0x0, 0xFFFF, 0x10000]))
    def guest_loads_mxcsr(self, nr: int, cpu: int, value: int) -> None:
        """LDMXCSR, with and without reserved bits."""
        self.world.guest_write(self.entered(nr, cpu), 0, MXCSR_OFFSET, value.to_bytes(4, "little"))

    @precondition(any_entered)
    @rule(nr=index, cpu=cpu_nr)
    def guest_reads(self, nr: int, cpu: int) -> None:
        """The guest reads every register it may."""
        self.world.guest_read(self.entered(nr, cpu))

    @precondition(any_entered)
    @rule(nr=index, cpu=cpu_nr, rows=st.integers(0, 17), colsb=st.sampled_from([0, 1, 64, 65]))
    def ldtilecfg(self, nr: int, cpu: int, rows: int, colsb: int) -> None:
        """LDTILECFG of good and bad configurations."""
        self.world.tile(self.entered(nr, cpu), TileOp.LDTILECFG, 0, tilecfg(rows, colsb))

    @precondition(any_entered)
    @rule(
        nr=index,
        cpu=cpu_nr,
        op=st.sampled_from(
            [TileOp.TILELOADD, TileOp.TILELOADD, TileOp.TILESTORED, TileOp.TILEZERO, TileOp.TILERELEASE]
        ),
        tile=st.integers(0, TILE_COUNT - 1),
        seed=seeds,
    )
    def tile_instruction(self, nr: int, cpu: int, op: TileOp, tile: int, seed: int) -> None:
        """Tile instructions, configured or not, armed or not."""
        memory = random_bytes(seed, TILE_BYTES) if op is TileOp.TILELOADD else b""
        self.world.tile(self.entered(nr, cpu), op, tile, memory)

    # -- host tasks ----------------------------------------------------------------------------------------------------

    @rule(nr=index, cpu=cpu_nr, component=st.sampled_from([*COMPONENTS, 18]), where=seeds, seed=seeds, trouble=troubles)
    def task_writes(self, nr: int, cpu: int, component: int, where: int, seed: int, trouble: Trouble) -> None:
        """User code loads random bytes; the first use of tile data grows the task's container or gets a signal."""
        task = self.user(nr, cpu)
        if task is not None:
            offset, length = _span(component, where, self.world.config.table.size_bytes(component))
            self.prepare(trouble)
            self.world.user_write(task, component, offset, random_bytes(seed, length))

    @rule(nr=index, cpu=cpu_nr)
    def task_reads(self, nr: int, cpu: int) -> None:
        """User code reads everything."""
        task = self.user(nr, cpu)
        if task is not None:
            self.world.user_read(task)

    @rule(nr=index, cpu=cpu_nr, thread=st.booleans())
    def clone(self, nr: int, cpu: int, thread: bool) -> None:
        """clone(2): a thread, or a process with a copy of the permissions."""
        parent = self.user(nr, cpu)
        if parent is not None and len(self.world.tasks) < 8:
            self.clones += 1
            self.world.clone(parent, f"{parent.fpu.name}.{self.clones}", thread=thread)

    @rule(nr=index)
    def execute(self, nr: int) -> None:
        """execve(2), by a task that is alone in its process and in no KVM_RUN."""
        task = self.task(nr)
        process = [each for each in self.world.tasks.values() if each.fpu.leader is task.fpu.leader]
        if process == [task] and task.fpu.task_fpstate is None:
            self.world.execute(task)

    @rule(nr=index)
    def exit(self, nr: int) -> None:
        """The task ends: any thread, or a child process that is alone; the VMs' own main threads stay."""
        task = self.task(nr)
        others = [e for e in self.world.tasks.values() if e.fpu.leader is task.fpu and e is not task]
        is_main = any(vm.leader is task.fpu for vm in self.world.vms.values())
        if task.fpu.task_fpstate is None and not others and not is_main:
            self.world.exit(task)

    @rule(process=st.sampled_from(PROCESSES), guest=st.booleans())
    def request_permission(self, process: str, guest: bool) -> None:
        """arch_prctl: EBUSY for guests and ENOSPC for tasks is all that can go wrong here."""
        errno = self.world.request(process, guest=guest)
        assert errno in (Errno.OK, Errno.EBUSY if guest else Errno.ENOSPC)

    # -- the machine ---------------------------------------------------------------------------------------------------

    @rule(nr=index, cpu=cpu_nr)
    def schedule(self, nr: int, cpu: int) -> None:
        """A task gets a CPU, wherever it was."""
        switch_to(self.world.cpus[cpu], self.task(nr).fpu)

    @rule(cpu=cpu_nr)
    def preempt(self, cpu: int) -> None:
        """Whoever runs there loses the CPU."""
        switch_to(self.world.cpus[cpu], None)

    @rule(cpu=cpu_nr, seed=seeds)
    def kernel_fpu(self, cpu: int, seed: int) -> None:
        """The kernel uses the FPU itself, behind everybody's back."""
        self.world.kernel_fpu(self.world.cpus[cpu], random_bytes(seed, 16))

    @rule(
        which=st.sampled_from([*PROCESSES, "host"]),
        room=st.sampled_from([None, None, 0, 2_624, 10_815, 10_816, 21_632]),
    )
    def limit(self, which: str, room: int | None) -> None:
        """A byte limit with exactly so much room left, or none."""
        account = self.world.allocator.host if which == "host" else self.world.vms[which].account
        account.set_limit(None if room is None else account.used_bytes + room)

    # -- after every rule ----------------------------------------------------------------------------------------------

    @invariant()
    def everything_holds(self) -> None:
        """The core's invariants, and every byte of every context."""
        self.world.executing, self.world.fail_next, self.world.ambushes = None, False, []
        self.world.check()

    def teardown(self) -> None:
        """Everything can be given back, and then nothing is used."""
        if self.world.executing is not None:
            return  # a rule failed half-way, and that failure is the one to report
        for what in sorted(self.world.reached):
            event(what)
        for guest in list(self.world.guests.values()):
            if guest.vcpu.state is VcpuState.ENTERED:
                self.world.run(guest.vcpu.fpu, 0)  # type: ignore[arg-type]
                self.world.leave(guest)
            self.world.destroy(guest)
        for task in list(self.world.tasks.values()):
            self.world.exit(task)
        note(f"host account: {self.world.allocator.host}")
        assert self.world.allocator.host.used_bytes == 0


def _pick(of: list[T], nr: int) -> T:
    return of[nr % len(of)]


def _span(component: int, where: int, size: int) -> tuple[int, int]:
    """An offset and a length inside the component.

    Of x87 a byte of FIP or FDP, or one 80-bit register: what has no bits of its own does not read back as loaded.
    MXCSR has a rule of its own.
    """
    if component == XFEATURE_PKRU:
        return 0, 4
    if component == 0:
        return (8 + where % 16, 1) if where % 2 else (32 + 16 * (where // 2 % 8), 10)
    offset = where % size
    return offset, 1 + where // size % (size - offset)


#: A failure is shrunk before it is reported, which takes its time.
TestCore = pytest.mark.timeout(900)(CoreMachine.TestCase)
