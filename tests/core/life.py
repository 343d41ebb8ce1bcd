"""What happens to a world's tasks and CPUs beside the swap: signals, debuggers, workers, interrupts, hotplug, sleep."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from fault_lab.sim.registers import Registers, task_registers
from fpu_core.context import running_cpu
from fpu_core.cpu import Cpu
from fpu_core.errors import Errno
from fpu_core.fpu import Fpu, TaskKind
from fpu_core.hotplug import cpu_offline, cpu_online, fpu_idle_fpregs, resume, suspend
from fpu_core.layout import MXCSR_OFFSET, XSTATE_BV_OFFSET
from fpu_core.regset import xstateregs_get, xstateregs_set
from fpu_core.rt_signal import deliver_signal, sigreturn
from fpu_core.sched import IrqContext, irq_fpu_usable, kernel_fpu_begin, kernel_fpu_end, switch_fpu_return, switch_to
from fpu_core.sigframe import FP_XSTATE_MAGIC2
from fpu_core.task import create_worker
from fpu_core.usermem import PAGE_BYTES, UserMemory
from fpu_core.xfeature import XFEATURE_PKRU, XFEATURE_SSE
from tests.core.world import Task, World

#: Where handlers' frames go, and a byte of theirs that must be 0.
_STACK_BASE = 0x7FFD_0000_0000
_RESERVED_OFFSET = XSTATE_BV_OFFSET + 16


def take_signal(world: World, task: Task, stack_bytes: int, absent: int, intruder: Task) -> None:
    """A signal for a running task, on a stack of its own; page ``absent`` of it must be faulted in first.

    ``intruder`` runs between the frame and the handler, if it is another task.
    """
    memory = UserMemory(_STACK_BASE, stack_bytes)
    memory.absent = {_STACK_BASE // PAGE_BYTES + absent}
    before = copy.deepcopy(task.regs, {id(world.config): world.config})
    with _intrusion(world, task, intruder):
        frame = deliver_signal(task.fpu, memory, memory.end)
    if frame is None:
        world.reached.add("no room for a frame")
        return
    task.frames.append((frame, before))
    supervisor = {nr: raw for nr, raw in task.regs.candidates.items() if nr not in task.regs.features()}
    task.regs = Registers(world.config, supervisor, pkru=world.config.init_pkru)
    world.reached.add("signal")


@contextmanager
def _intrusion(world: World, task: Task, intruder: Task) -> Iterator[None]:
    """Wherever the kernel can be preempted, the intruder gets the CPU for a moment and uses its registers."""

    def preempted(_where: str) -> None:
        cpu = running_cpu(task.fpu)
        if intruder is not task:
            switch_to(cpu, intruder.fpu)
            switch_fpu_return(intruder.fpu)
            switch_to(cpu, task.fpu)

    before, world.host.preemptible = world.host.preemptible, preempted
    try:
        yield
    finally:
        world.host.preemptible = before


def return_from_signal(world: World, task: Task, *, spoilt: bool, absent: int) -> None:
    """The handler returns; if it spoilt its frame, the registers are cleared instead.

    A handler that has grown the container leaves by siglongjmp: the frame has its magic word where it was (findings).
    """
    frame, before = task.frames.pop()
    magic2 = frame.memory.copy_from_user(frame.address + task.fpu.fpstate.user_size, 4)
    if magic2 != FP_XSTATE_MAGIC2.to_bytes(4, "little"):
        world.reached.add("grown in a handler")
        return
    frame.memory.absent = {frame.address // PAGE_BYTES + absent}
    if spoilt:
        at = frame.address - frame.memory.base + _RESERVED_OFFSET
        frame.memory.data[at] = 1
    assert sigreturn(task.fpu, frame) is not spoilt
    task.regs = task_registers(world.config) if spoilt else before
    world.reached.add("sigreturn of a bad frame" if spoilt else "sigreturn")


def ptrace(world: World, task: Task, nr: int, data: bytes) -> None:
    """A debugger loads a component of a stopped task; what a short buffer would do is refused."""
    fpu = task.fpu
    if fpu.cpu is not None:
        switch_to(fpu.cpu, None)
    image = xstateregs_get(fpu)
    assert isinstance(image, bytes)
    assert xstateregs_set(fpu, image[:-8]) is Errno.EFAULT
    buf = bytearray(image)
    # What the image says of MXCSR is old where SSE is in its init state (docs/findings.md).
    buf[MXCSR_OFFSET : MXCSR_OFFSET + 4] = task.regs.mxcsr.to_bytes(4, "little")
    at = world.config.table.offset(world.config.user.max_features, nr, compacted=False)
    buf[at : at + len(data)] = data
    bv = int.from_bytes(buf[XSTATE_BV_OFFSET : XSTATE_BV_OFFSET + 8], "little") | 1 << nr
    buf[XSTATE_BV_OFFSET : XSTATE_BV_OFFSET + 8] = bv.to_bytes(8, "little")
    assert xstateregs_set(fpu, bytes(buf)) is Errno.OK
    if not bv >> XFEATURE_PKRU & 1:
        task.regs.pkru = 0
    task.regs.write(nr, 0, data)
    world.reached.add("ptrace")


def add_worker(world: World, process: str, name: str, *, user_worker: bool) -> Fpu:
    """A task that never goes to user mode; nothing is known of its registers, for it has none."""
    vm = world.vms[process]
    kind = TaskKind.USER_WORKER if user_worker else TaskKind.KTHREAD
    leader = vm.leader if user_worker else None
    fpu = world.workers[name] = create_worker(world.host, name, kind, account=vm.account, leader=leader)
    return fpu


def off_and_on(world: World, cpu: Cpu) -> None:
    """A CPU goes down and comes back up at once; its task goes elsewhere when it next runs."""
    switch_to(cpu, None)
    cpu_offline(cpu)
    world.check()
    cpu_online(cpu)
    world.reached.add("hotplug")


def sleep_and_wake(world: World) -> None:
    """The machine sleeps and wakes, with whatever runs on CPU 0."""
    switch_to(world.cpus[1], None)
    resume(world.cpus[0], suspend(world.cpus))
    world.reached.add("slept")


def idle(cpu: Cpu) -> None:
    """Nothing runs there, and tiles are released."""
    switch_to(cpu, None)
    fpu_idle_fpregs(cpu)


def interrupt(cpu: Cpu, context: IrqContext, data: bytes) -> None:
    """A soft or hard interrupt uses the FPU, behind everybody's back."""
    assert irq_fpu_usable(cpu, context)
    kernel_fpu_begin(cpu, context)
    cpu.write_register(XFEATURE_SSE, 0, data[:16])
    assert not any(irq_fpu_usable(cpu, each) for each in IrqContext)
    kernel_fpu_end(cpu)
