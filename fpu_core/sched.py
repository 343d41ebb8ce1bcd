"""What the scheduler and the kernel's own FPU users do to registers behind a task's back.

Source: arch/x86/include/asm/fpu/sched.h, switch_fpu(); arch/x86/include/asm/pkru.h and process.h, x86_pkru_load();
arch/x86/kernel/fpu/core.c, kernel_fpu_begin_mask() and irq_fpu_usable().
"""

from __future__ import annotations

import enum

from fpu_core.context import fpregs_restore_userregs, running_cpu, save_fpregs_to_fpstate
from fpu_core.cpu import Cpu
from fpu_core.errors import core_assert
from fpu_core.fpstate import MXCSR_INIT
from fpu_core.fpu import Fpu
from fpu_core.xfeature import XFEATURE_MASK_PKRU, XFEATURE_PKRU

# -- the scheduler -----------------------------------------------------------------------------------------------------


def switch_to(cpu: Cpu, fpu: Fpu | None) -> None:
    """Let ``fpu`` run on ``cpu`` (None: idle), taking it from the CPU it was on. The registers are reloaded lazily.

    PKRU is not: it is the next task's at once, because the kernel itself obeys it when it touches user memory.
    """
    if cpu.current is fpu:
        return
    core_assert(cpu.online, "cpu {} is offline", cpu.nr)
    core_assert(cpu.kernel_fpu_allowed, "cpu {} switches inside a kernel_fpu section", cpu.nr)
    if fpu is not None and fpu.cpu is not None:
        switch_to(fpu.cpu, None)
    if cpu.current is not None:
        switch_fpu(cpu.current)
    cpu.current = fpu
    if fpu is not None:
        fpu.cpu = cpu
        write_pkru(cpu, fpu.pkru)


def switch_fpu(prev: Fpu) -> None:
    """Take the CPU away from ``prev``: its registers go to its active container, which may be a guest's.

    A kernel thread or user worker has no registers to save: what is in the CPU is whoever ran before it (bug B24).
    """
    cpu = running_cpu(prev)
    if not prev.need_load and not prev.is_worker:
        prev.need_load = True
        save_fpregs_to_fpstate(prev)
        prev.last_cpu = cpu.nr
    prev.pkru = read_pkru(cpu)
    prev.cpu = None
    cpu.current = None


def switch_fpu_return(fpu: Fpu) -> None:
    """On the way back to user mode, or into the guest: load the registers if somebody else had them."""
    if fpu.need_load:
        fpregs_restore_userregs(fpu)


# -- the kernel's own use ----------------------------------------------------------------------------------------------


class IrqContext(enum.Enum):
    """Where kernel code runs, as far as it matters to whoever wants the FPU."""

    TASK = "task"
    SOFTIRQ = "soft interrupt"
    HARDIRQ = "hard interrupt"


def irq_fpu_usable(cpu: Cpu, context: IrqContext) -> bool:
    """Whether kernel code in ``context`` may begin a kernel_fpu section on ``cpu`` now.

    Not inside another one, and not before the CPU's FPU is set up (bug B31). A hard interrupt may not if it hit code
    with soft interrupts disabled: that could be under fpregs_lock(), in the middle of a save or a restore (bug B16).
    """
    if not cpu.kernel_fpu_allowed:
        return False
    return context is not IrqContext.HARDIRQ or not cpu.softirq_count


def kernel_fpu_begin(cpu: Cpu, context: IrqContext = IrqContext.TASK) -> None:
    """The kernel uses the FPU itself: the running task's registers are saved first and are nobody's afterwards.

    If a guest is swapped in, it is the *guest's* container they are saved to. Whoever is not in task context asks
    ``irq_fpu_usable`` first.
    """
    core_assert(irq_fpu_usable(cpu, context), f"cpu {cpu.nr}: kernel_fpu section where none may begin, {context.value}")
    cpu.kernel_fpu_allowed = False
    current = cpu.current
    if current is not None and not current.is_worker and not current.need_load:
        current.need_load = True
        save_fpregs_to_fpstate(current)
    cpu.owner = None
    cpu.set_mxcsr(MXCSR_INIT)


def kernel_fpu_end(cpu: Cpu) -> None:
    """End the section. What the kernel left in the registers stays there: nobody owns it."""
    core_assert(not cpu.kernel_fpu_allowed, f"cpu {cpu.nr} is not in a kernel_fpu section")
    cpu.kernel_fpu_allowed = True


# -- PKRU --------------------------------------------------------------------------------------------------------------


def write_pkru(cpu: Cpu, pkru: int) -> None:
    """Load PKRU, which no swap and no restore touches: it is switched eagerly with the task and around the guest."""
    if cpu.config.has_pkru:
        if pkru:
            # The whole component: bytes 4..7 are reserved, and what an earlier context left there is not this one's.
            cpu.write_register(XFEATURE_PKRU, 0, pkru.to_bytes(cpu.config.table.size_bytes(XFEATURE_PKRU), "little"))
        else:
            cpu.init_components(XFEATURE_MASK_PKRU)


def set_task_pkru(fpu: Fpu, pkru: int) -> None:
    """Give a task another PKRU; if it runs, the register has it at once."""
    fpu.pkru = pkru if fpu.host.config.has_pkru else 0
    if fpu.cpu is not None:
        write_pkru(fpu.cpu, fpu.pkru)


def read_pkru(cpu: Cpu) -> int:
    """Return the PKRU register, 0 where there is none."""
    if not cpu.xinuse & XFEATURE_MASK_PKRU:
        return 0  # its init value
    return int.from_bytes(cpu.read_register(XFEATURE_PKRU)[:4], "little") if cpu.config.has_pkru else 0
