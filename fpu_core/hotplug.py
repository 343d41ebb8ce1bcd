"""CPUs that come and go, sleep and idle: what their registers are then, and what the kernel's own records say of them.

    cpu_offline    its tasks have left, and it may not be used; its registers are lost with its power
    cpu_starting   power comes back: every register has its reset value, nobody owns them, the FPU is not set up
    fpu_init_cpu   XCR0, XSS and XFD as on every other CPU; from here on the kernel may use the FPU
    suspend        the last CPU saves the running task's registers and stops
    resume         XCR0, XSS, and the XFD of the task that goes on

Sources: arch/x86/kernel/fpu/init.c, fpu__init_cpu(); xstate.c, fpu__init_cpu_xstate() and fpu__resume_cpu();
arch/x86/kernel/smpboot.c, native_kick_ap(); arch/x86/power/cpu.c; core.c, fpu_idle_fpregs().
"""

from __future__ import annotations

from collections.abc import Sequence

from fpu_core.cpu import Cpu
from fpu_core.errors import core_assert
from fpu_core.fpstate import MXCSR_INIT
from fpu_core.sched import kernel_fpu_begin, kernel_fpu_end, write_pkru
from fpu_core.xfeature import XFEATURE_MASK_FP, XFEATURE_MASK_XTILE


def cpu_offline(cpu: Cpu) -> None:
    """Take ``cpu`` down. Its task must have been moved away; whose registers it still holds has them in memory."""
    core_assert(cpu.current is None, f"cpu {cpu.nr} goes offline under {cpu.current}")
    cpu.online = False
    cpu.kernel_fpu_allowed = False


def cpu_starting(cpu: Cpu) -> None:
    """Power the CPU up: the FPU context is blank, so nobody can own it, and the kernel must not use it yet."""
    core_assert(not cpu.online, f"cpu {cpu.nr} is online")
    _reset_registers(cpu)
    cpu.owner = None


def fpu_init_cpu(cpu: Cpu) -> None:
    """Set the FPU up as on every other CPU. XFD is written whatever the cache says, and the cache with it (bug B3)."""
    _init_xstate(cpu)
    if cpu.config.has_xfd:
        cpu.xfd_set_state(cpu.config.init_xfd)
    cpu.kernel_fpu_allowed = True
    cpu.online = True


def cpu_online(cpu: Cpu) -> None:
    """Bring ``cpu`` back up."""
    cpu_starting(cpu)
    fpu_init_cpu(cpu)


def suspend(cpus: Sequence[Cpu]) -> list[Cpu]:
    """Put the machine to sleep: ``cpus[0]`` last, its task's registers saved as for the kernel's own use.

    Returns the CPUs that went offline for it.
    """
    boot_cpu, *others = cpus
    frozen = [cpu for cpu in others if cpu.online]
    for cpu in frozen:
        cpu_offline(cpu)
    kernel_fpu_begin(boot_cpu)
    _reset_registers(boot_cpu)
    return frozen


def resume(boot_cpu: Cpu, frozen: Sequence[Cpu]) -> None:
    """Wake it up. The boot CPU gets the XFD of the task that runs there, whose registers are still in memory.

    The kernel writes that XFD to the register alone; ours goes the one way there is, register and cache together. See
    docs/findings.md.
    """
    _init_xstate(boot_cpu)
    if boot_cpu.config.has_xfd:
        current = boot_cpu.current
        boot_cpu.xfd_set_state(current.fpstate.xfd if current is not None else boot_cpu.config.init_xfd)
    kernel_fpu_end(boot_cpu)
    for cpu in frozen:
        cpu_online(cpu)


def fpu_idle_fpregs(cpu: Cpu) -> None:
    """Before a deep idle state: tiles in use would keep the core from it, so they are released.

    The registers are nobody's then: whoever had them left a copy in memory, tiles included (bug B44).
    """
    core_assert(cpu.current is None or cpu.current.is_worker, f"cpu {cpu.nr} idles under {cpu.current}")
    if cpu.config.caps.AMX_TILE and cpu.xcr0 & cpu.xinuse & XFEATURE_MASK_XTILE:
        cpu.init_components(XFEATURE_MASK_XTILE)
        cpu.owner = None


def _reset_registers(cpu: Cpu) -> None:
    """What power-up leaves in the registers. The kernel's own records (owner, XFD cache) are not registers."""
    cpu.init_components(cpu.xinuse)
    cpu.set_mxcsr(MXCSR_INIT)
    cpu.xcr0 = XFEATURE_MASK_FP
    cpu.xss = cpu.xfd = cpu.xfd_err = 0


def _init_xstate(cpu: Cpu) -> None:
    """XCR0 and XSS, and PKRU, which no image brings back. Source: arch/x86/kernel/cpu/common.c, setup_pku()."""
    cpu.xcr0, cpu.xss = cpu.config.xcr0, cpu.config.xss
    write_pkru(cpu, cpu.current.pkru if cpu.current is not None else cpu.config.init_pkru)
