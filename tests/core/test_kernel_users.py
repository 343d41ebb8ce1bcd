"""Who uses registers behind a task's back: workers, the kernel itself in every context, CPUs that come and go, idle.

References: arch/x86/kernel/fpu/core.c, xstate.c; arch/x86/include/asm/fpu/sched.h.
"""

from __future__ import annotations

import pytest

from fpu_core.alloc import Account
from fpu_core.context import fpregs_state_valid
from fpu_core.cpu import Cpu
from fpu_core.errors import CoreBug, Errno, FieldError
from fpu_core.fpu import TaskKind
from fpu_core.hotplug import cpu_offline, cpu_online, cpu_starting, fpu_idle_fpregs, fpu_init_cpu, resume, suspend
from fpu_core.sched import (
    IrqContext,
    irq_fpu_usable,
    kernel_fpu_begin,
    kernel_fpu_end,
    read_pkru,
    switch_fpu_return,
    switch_to,
)
from fpu_core.swap import swap_in, swap_out
from fpu_core.task import avx512_status, clone_task, create_worker, enable_shadow_stack, exit_task, use_feature
from tests.core.rig import Rig, container, without_compaction

TILE_DATA = 1 << 18


def _with_tiles() -> Rig:
    """A task that uses tile data, and so runs with XFD = 0."""
    rig = Rig.create()
    rig.permit(guest=False)
    use_feature(rig.fpu, 18, 0, b"tile")
    return rig


# -- workers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TaskKind.KTHREAD, TaskKind.USER_WORKER])
def test_a_worker_in_between_costs_nothing(kind: TaskKind) -> None:
    """A worker runs where a task ran: it is neither restored nor saved, and the task finds its registers untouched."""
    rig = Rig.create()
    use_feature(rig.fpu, 1, 0, b"mine")
    leader = rig.fpu if kind is TaskKind.USER_WORKER else None
    worker = create_worker(rig.host, "worker", kind, account=Account("host"), leader=leader)
    switch_to(rig.cpu, worker)
    before = (rig.cpus[0].counters.saves, rig.cpus[0].counters.restores)
    kernel_fpu_begin(rig.cpus[0])
    kernel_fpu_end(rig.cpus[0])
    switch_to(rig.cpus[0], rig.fpu)
    assert (rig.cpus[0].counters.saves, rig.cpus[0].counters.restores) == before
    assert (worker.need_load, worker.last_cpu, worker.fpstate.xstate_bv) == (True, -1, 0)
    switch_fpu_return(rig.fpu)
    assert rig.cpu.read_register(1).startswith(b"mine")
    rig.check()


def test_who_pays_for_a_worker() -> None:
    """A worker has a name and an account of its own; a user worker is of its leader's process."""
    rig = Rig.create()
    account = Account("host")
    kernel = create_worker(rig.host, "kworker", TaskKind.KTHREAD, account=account)
    user = create_worker(rig.host, "iou-wrk", TaskKind.USER_WORKER, account=account, leader=rig.fpu)
    assert [(each.name, each.account) for each in (kernel, user)] == [("kworker", account), ("iou-wrk", account)]
    assert (kernel.leader, user.leader) == (kernel, rig.fpu)


def test_lazy_return_past_a_worker() -> None:
    """Registers survive a worker that leaves them alone: no restore on the way back (the point of the owner mark)."""
    rig = Rig.create()
    use_feature(rig.fpu, 1, 0, b"mine")
    worker = create_worker(rig.host, "worker", TaskKind.KTHREAD, account=Account("host"))
    cpu = rig.cpu
    switch_to(cpu, worker)
    switch_to(cpu, rig.fpu)
    restores = cpu.counters.restores
    switch_fpu_return(rig.fpu)
    assert cpu.counters.restores == restores


def test_a_worker_has_no_registers_to_restore() -> None:
    """Restoring one is our bug, and there is no AVX-512 line for it (B30)."""
    rig = Rig.create()
    worker = create_worker(rig.host, "worker", TaskKind.KTHREAD, account=Account("host"))
    switch_to(rig.cpu, worker)
    with pytest.raises(CoreBug, match="never goes to user mode"):
        switch_fpu_return(worker)
    assert avx512_status(worker) is None


def test_avx512_status() -> None:
    """Milliseconds since a save found ZMM state; -1 for never; nothing on a host without AVX-512."""
    rig = Rig.create()
    assert avx512_status(rig.fpu) == -1
    use_feature(rig.fpu, 5, 0, b"mask")
    _preempt_and_back(rig)
    assert avx512_status(rig.fpu) == -1, "opmask alone is not counted"
    rig.host.jiffies = 40
    use_feature(rig.fpu, 6, 0, b"zmm")
    _preempt_and_back(rig)
    rig.host.jiffies = 100
    assert avx512_status(rig.fpu) == 60
    assert avx512_status(clone_task(rig.fpu, "child", thread=False)) == -1
    assert avx512_status(Rig.create("goldmont").fpu) is None


def _preempt_and_back(rig: Rig) -> None:
    cpu = rig.cpu
    switch_to(cpu, None)
    switch_to(cpu, rig.fpu)
    switch_fpu_return(rig.fpu)


# -- the kernel's own use ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", list(IrqContext))
def test_a_section_does_not_nest(context: IrqContext) -> None:
    """Inside a section nobody else may begin one, whatever interrupted it."""
    rig = Rig.create()
    assert irq_fpu_usable(rig.cpu, context)
    kernel_fpu_begin(rig.cpu)
    assert not irq_fpu_usable(rig.cpu, context)
    with pytest.raises(CoreBug, match="where none may begin"):
        kernel_fpu_begin(rig.cpu, context)
    kernel_fpu_end(rig.cpu)
    with pytest.raises(CoreBug, match="not in a kernel_fpu section"):
        kernel_fpu_end(rig.cpu)


def test_a_soft_interrupt_saves_the_guest() -> None:
    """A soft interrupt while a guest is loaded: its registers go to its own container, and come back at the entry."""
    rig = Rig.create()
    guest = rig.guest()
    swap_in(rig.fpu, guest)
    rig.cpu.write_register(2, 0, b"guest")
    kernel_fpu_begin(rig.cpu, IrqContext.SOFTIRQ)
    rig.cpu.write_register(2, 0, b"kernel")
    kernel_fpu_end(rig.cpu)
    assert container(guest).xstate_bv & 1 << 2
    switch_fpu_return(rig.fpu)
    assert rig.cpu.read_register(2).startswith(b"guest")
    swap_out(rig.fpu, guest)
    rig.check()


@pytest.mark.parametrize(
    ("softirq_count", "usable"),
    [pytest.param(0, True, id="anywhere else"), pytest.param(1, False, id="soft interrupts disabled")],
)
def test_a_hard_interrupt_looks_at_what_it_hit(softirq_count: int, usable: bool) -> None:
    """Under fpregs_lock(), or in a soft interrupt, a hard one may not use the FPU."""
    rig = Rig.create()
    rig.cpu.softirq_count = softirq_count
    assert irq_fpu_usable(rig.cpu, IrqContext.HARDIRQ) is usable
    assert irq_fpu_usable(rig.cpu, IrqContext.SOFTIRQ)


def test_a_hard_interrupt_in_the_middle_of_a_swap() -> None:
    """Every save and restore of a swap can be interrupted: whoever asks first leaves the registers alone (B16)."""
    rig = Rig.create()
    guest, hits = rig.guest(), []

    def interrupt(cpu: Cpu) -> None:
        hits.append(irq_fpu_usable(cpu, IrqContext.HARDIRQ))
        if hits[-1]:
            kernel_fpu_begin(cpu, IrqContext.HARDIRQ)
            cpu.write_register(2, 0, b"interrupt")
            kernel_fpu_end(cpu)

    rig.cpu.interrupted = interrupt
    use_feature(rig.fpu, 2, 0, b"mine")
    swap_in(rig.fpu, guest)
    rig.cpu.write_register(2, 0, b"guest")
    swap_out(rig.fpu, guest)
    assert hits == [False] * 4
    assert rig.cpu.softirq_count == 0
    assert rig.cpu.read_register(2).startswith(b"mine")


def test_interrupts_nest() -> None:
    """A hard interrupt that hits a soft one, which holds the lock itself: each level is counted, and undone."""
    rig, depths = Rig.create(), list[int]()
    rig.cpu.softirq_count = 1
    rig.cpu.interrupted = lambda cpu: depths.append(cpu.softirq_count)
    rig.cpu.interrupt_point()
    assert (depths, rig.cpu.softirq_count) == ([2], 1)


# -- CPUs --------------------------------------------------------------------------------------------------------------


def test_a_cpu_comes_back_with_the_init_xfd() -> None:
    """Offline with XFD = 0, online with every dynamic feature disabled, in the register and in the cache (B3)."""
    rig = _with_tiles()
    cpu = rig.cpu
    assert (cpu.xfd, cpu.xfd_cache) == (0, 0)
    switch_to(rig.cpus[1], rig.fpu)
    cpu_offline(cpu)
    assert not irq_fpu_usable(cpu, IrqContext.TASK)
    cpu_starting(cpu)
    assert not irq_fpu_usable(cpu, IrqContext.TASK), "the FPU is not set up yet (B31)"
    assert (cpu.xcr0, cpu.xss, cpu.xinuse, cpu.owner) == (1, 0, 0, None)
    fpu_init_cpu(cpu)
    assert (cpu.xfd, cpu.xfd_cache, cpu.xcr0) == (TILE_DATA, TILE_DATA, rig.config.xcr0)
    switch_to(cpu, rig.fpu)
    switch_fpu_return(rig.fpu)
    assert cpu.read_register(18).startswith(b"tile")
    rig.check()


def test_blank_registers_are_nobodys() -> None:
    """A task whose registers were last on that CPU must not take the blank ones for its own."""
    rig = Rig.create()
    use_feature(rig.fpu, 1, 0, b"mine")
    cpu = rig.cpu
    switch_to(cpu, None)
    assert fpregs_state_valid(rig.fpu, cpu)
    cpu_offline(cpu)
    cpu_online(cpu)
    assert not fpregs_state_valid(rig.fpu, cpu)
    switch_to(cpu, rig.fpu)
    switch_fpu_return(rig.fpu)
    assert cpu.read_register(1).startswith(b"mine")


def test_what_a_cpu_that_is_offline_refuses() -> None:
    """It goes down without a task, and takes none before it is back."""
    rig = Rig.create()
    with pytest.raises(CoreBug, match="goes offline under"):
        cpu_offline(rig.cpu)
    cpu_offline(rig.cpus[1])
    with pytest.raises(CoreBug, match="is offline"):
        switch_to(rig.cpus[1], rig.fpu)
    with pytest.raises(CoreBug, match="is online"):
        cpu_starting(rig.cpu)


@pytest.mark.parametrize("need_load", [False, True])
def test_resume(need_load: bool) -> None:
    """The machine sleeps and wakes: XFD is the running task's, its registers come back from memory."""
    rig = _with_tiles()
    if need_load:
        _other_task_runs(rig)
    frozen = suspend(rig.cpus)
    assert (rig.cpus[0].xfd, rig.cpus[0].xinuse, rig.cpus[1].online) == (0, 0, False)
    resume(rig.cpus[0], frozen)
    assert (rig.cpu.xfd, rig.cpu.xfd_cache) == (0, 0)
    assert (rig.cpus[1].xfd, rig.cpus[1].online) == (TILE_DATA, True)
    rig.check()
    switch_fpu_return(rig.fpu)
    assert rig.cpu.read_register(18).startswith(b"tile")
    assert read_pkru(rig.cpu) == rig.fpu.pkru


def test_resume_of_an_idle_machine() -> None:
    """Nobody runs: every dynamic feature is disabled, as on any CPU that comes up."""
    rig = _with_tiles()
    switch_to(rig.cpus[0], None)
    resume(rig.cpus[0], suspend(rig.cpus))
    assert (rig.cpus[0].xfd, rig.cpus[0].xfd_cache, rig.cpus[0].owner) == (TILE_DATA, TILE_DATA, None)
    rig.check()


def _other_task_runs(rig: Rig) -> None:
    """A task without tiles uses the CPU for a moment and leaves its XFD there."""
    other = clone_task(rig.fpu, "other", thread=True)
    cpu = rig.cpu
    switch_to(cpu, other)
    switch_fpu_return(other)
    switch_to(cpu, rig.fpu)
    exit_task(other)
    assert (cpu.xfd, rig.fpu.fpstate.xfd, rig.fpu.need_load) == (TILE_DATA, 0, True)


def test_resume_after_another_tasks_xfd() -> None:
    """The sleeper's registers are in memory and the register has another task's XFD: the cache must follow the write.

    Read literally, the kernel writes the register alone here; the next task with that XFD would then go without it.
    """
    rig = Rig.create()
    rig.permit(guest=False)
    other = clone_task(rig.fpu, "other", thread=True)
    cpu = rig.cpu
    switch_to(cpu, other)
    use_feature(other, 18, 0, b"tile")
    switch_to(cpu, rig.fpu)
    assert (cpu.xfd, rig.fpu.fpstate.xfd) == (0, TILE_DATA)
    resume(rig.cpus[0], suspend(rig.cpus))
    assert cpu.xfd == cpu.xfd_cache == TILE_DATA
    switch_to(cpu, other)
    switch_fpu_return(other)
    assert cpu.read_register(18).startswith(b"tile")


def test_idle_releases_tiles() -> None:
    """Tiles keep a core from its deepest idle state: they are released, and the registers are nobody's then (B44)."""
    rig = _with_tiles()
    cpu = rig.cpu
    switch_to(cpu, None)
    assert fpregs_state_valid(rig.fpu, cpu)
    fpu_idle_fpregs(cpu)
    assert (cpu.xinuse & TILE_DATA, cpu.owner) == (0, None)
    switch_to(cpu, rig.fpu)
    switch_fpu_return(rig.fpu)
    assert rig.cpu.read_register(18).startswith(b"tile")


def test_idle_without_tiles_keeps_the_owner() -> None:
    """Nothing to release: a task that comes back to its CPU restores nothing. And idle under a task is our bug."""
    rig = Rig.create()
    use_feature(rig.fpu, 1, 0, b"mine")
    cpu = rig.cpu
    with pytest.raises(CoreBug, match="idles under"):
        fpu_idle_fpregs(cpu)
    switch_to(cpu, None)
    fpu_idle_fpregs(cpu)
    assert fpregs_state_valid(rig.fpu, cpu)


# -- PKRU and shadow stacks --------------------------------------------------------------------------------------------


def test_pkru_is_switched_at_once() -> None:
    """It is the next task's before anything is restored; a new program has every key but 0 closed."""
    rig = Rig.create()
    assert read_pkru(rig.cpu) == 0x55555554
    use_feature(rig.fpu, 9, 0, (4).to_bytes(4, "little"))
    child = clone_task(rig.fpu, "child", thread=False)
    use_feature(rig.fpu, 9, 0, (8).to_bytes(4, "little"))
    cpu = rig.cpu
    switch_to(cpu, child)
    assert (read_pkru(cpu), child.need_load) == (4, True)
    switch_to(cpu, rig.fpu)
    assert (read_pkru(cpu), rig.fpu.need_load) == (8, True)


def test_a_host_without_pkru_has_none() -> None:
    """Neither register nor default."""
    rig = Rig.create("goldmont")
    assert (rig.fpu.pkru, read_pkru(rig.cpu), rig.config.has_pkru) == (0, 0, False)


def test_shadow_stack_in_clone() -> None:
    """A child has the parent's CET state with a stack pointer of its own, which a parent without one cannot give."""
    rig = Rig.create()
    with pytest.raises(FieldError, match="no shadow stack"):
        clone_task(rig.fpu, "child", thread=True, ssp=0x7000)
    assert enable_shadow_stack(rig.fpu, 0x5000) is Errno.OK
    child = clone_task(rig.fpu, "child", thread=True, ssp=0x7000)
    same = clone_task(rig.fpu, "same", thread=True)
    at = rig.config.table.offset(child.fpstate.xfeatures, 11, compacted=True) + 8
    expected = same.fpstate.regs[:at] + (0x7000).to_bytes(8, "little") + same.fpstate.regs[at + 8 :]
    assert child.fpstate.regs == expected, "the pointer and nothing else"
    switch_to(rig.cpu, child)
    assert child.cpu is not None
    switch_fpu_return(child)
    assert child.cpu.read_register(11) == (1).to_bytes(8, "little") + (0x7000).to_bytes(8, "little")
    assert enable_shadow_stack(Rig.create(without_compaction()).fpu, 0x5000) is Errno.EOPNOTSUPP
