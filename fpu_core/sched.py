"""What the scheduler and the kernel's own FPU users do to registers behind a task's back.

Source: arch/x86/include/asm/fpu/sched.h, switch_fpu(); arch/x86/kernel/fpu/core.c, kernel_fpu_begin().
"""

from __future__ import annotations

from fpu_core.context import fpregs_restore_userregs, running_cpu, save_fpregs_to_fpstate
from fpu_core.cpu import Cpu
from fpu_core.errors import core_assert
from fpu_core.fpstate import MXCSR_INIT
from fpu_core.fpu import Fpu
from fpu_core.xfeature import XFEATURE_MASK_PKRU, XFEATURE_PKRU


def switch_to(cpu: Cpu, fpu: Fpu | None) -> None:
    """Let ``fpu`` run on ``cpu`` (None: idle), taking it from the CPU it was on. The registers are reloaded lazily."""
    if cpu.current is fpu:
        return
    core_assert(not cpu.in_kernel_fpu, f"cpu {cpu.nr} switches inside a kernel_fpu section")
    if fpu is not None and fpu.cpu is not None:
        switch_to(fpu.cpu, None)
    if cpu.current is not None:
        switch_fpu(cpu.current)
    cpu.current = fpu
    if fpu is not None:
        fpu.cpu = cpu
        write_pkru(cpu, fpu.pkru)


def switch_fpu(prev: Fpu) -> None:
    """Take the CPU away from ``prev``: its registers go to its active container, which may be a guest's."""
    cpu = running_cpu(prev)
    if not prev.need_load and not prev.is_kthread:
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


def kernel_fpu_begin(cpu: Cpu) -> None:
    """The kernel uses the FPU itself: the running task's registers are saved first and are nobody's afterwards.

    If a guest is swapped in, it is the *guest's* container they are saved to.
    """
    core_assert(not cpu.in_kernel_fpu, f"cpu {cpu.nr}: kernel_fpu sections do not nest")
    cpu.in_kernel_fpu = True
    current = cpu.current
    if current is not None and not current.is_kthread and not current.need_load:
        current.need_load = True
        save_fpregs_to_fpstate(current)
    cpu.owner = None
    cpu.set_mxcsr(MXCSR_INIT)


def kernel_fpu_end(cpu: Cpu) -> None:
    """End the section. What the kernel left in the registers stays there: nobody owns it."""
    core_assert(cpu.in_kernel_fpu, f"cpu {cpu.nr} is not in a kernel_fpu section")
    cpu.in_kernel_fpu = False


def write_pkru(cpu: Cpu, pkru: int) -> None:
    """Load PKRU, which no swap and no restore touches: it is switched eagerly with the task and around the guest."""
    if XFEATURE_PKRU in cpu.config.table.components and cpu.config.kernel.max_features & XFEATURE_MASK_PKRU:
        if pkru:
            # The whole component: bytes 4..7 are reserved, and what an earlier context left there is not this one's.
            cpu.write_register(XFEATURE_PKRU, 0, pkru.to_bytes(cpu.config.table.size_bytes(XFEATURE_PKRU), "little"))
        else:
            cpu.init_components(XFEATURE_MASK_PKRU)


def read_pkru(cpu: Cpu) -> int:
    """Return the PKRU register, 0 where there is none."""
    if not cpu.config.kernel.max_features & XFEATURE_MASK_PKRU:
        return 0
    return int.from_bytes(cpu.read_register(XFEATURE_PKRU)[:4], "little")
