"""Bugs around the kernel's own use of the FPU: interrupts, workers, CPUs that come and go, idle."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Mutant, Patch

EXHIBITS: Final = (
    Mutant(
        id="B3",
        title="A CPU that comes online has another XFD than its cache says",
        fix="x86/fpu: Keep xfd_state in sync with MSR_IA32_XFD; March 2024, 10e4b5166df9",
        cve="CVE-2024-35801",
        breaks="xfd_cache_is_the_register",
        patches=(
            Patch(
                "fpu_core.hotplug",
                "        cpu.xfd_set_state(cpu.config.init_xfd)\n    cpu.kernel_fpu_allowed = True\n",
                "        cpu.xfd = cpu.config.init_xfd\n    cpu.kernel_fpu_allowed = True\n",
            ),
        ),
    ),
    Mutant(
        id="B16",
        title="A hard interrupt uses the FPU in the middle of a save",
        fix="x86/fpu: Prevent FPU state corruption; May 2022, 59f5ede3bc0f",
        breaks="no kernel_fpu section in a hard interrupt that hit a region under fpregs_lock()",
        patches=(
            Patch(
                "fpu_core.sched",
                "    return context is not IrqContext.HARDIRQ or not cpu.softirq_count\n",
                "    return True\n",
            ),
        ),
    ),
    Mutant(
        id="B24",
        title="kernel_fpu_begin takes a worker for a user task",
        fix="x86/fpu: Don't set TIF_NEED_FPU_LOAD for PF_IO_WORKER threads; January 2023, cb3ea4b7671b",
        breaks="workers_own_nothing",
        patches=(
            Patch(
                "fpu_core.sched",
                "    if current is not None and not current.is_worker and not current.need_load:\n",
                "    if current is not None and (current.is_worker or not current.need_load):\n",
            ),
        ),
    ),
    Mutant(
        id="B30",
        title="A worker is asked when it last used AVX-512",
        fix="x86/fpu: Fix NULL dereference in avx512_status(); August 2025, 31cd31c9e17e",
        breaks="only user tasks have registers to tell of",
        patches=(
            Patch(
                "fpu_core.task",
                "    if fpu.is_worker or not fpu.host.config.caps.AVX512F:\n",
                "    if not fpu.host.config.caps.AVX512F:\n",
            ),
        ),
    ),
    Mutant(
        id="B31",
        title="The kernel may use the FPU of a CPU that is not set up yet",
        fix="x86/fpu: Fix irq_fpu_usable() to return false during CPU onlining; May 2025, 2297554f01df",
        breaks="offline_cpus_have_nobody",
        patches=(
            Patch(
                "fpu_core.hotplug",
                "    cpu.online = False\n    cpu.kernel_fpu_allowed = False\n",
                "    cpu.online = False\n",
            ),
        ),
    ),
    Mutant(
        id="B44",
        title="An idle CPU releases tiles that a task will take up again",
        fix="",
        breaks="valid_registers_are_the_image",
        patches=(
            Patch(
                "fpu_core.hotplug",
                "        cpu.init_components(XFEATURE_MASK_XTILE)\n        cpu.owner = None\n",
                "        cpu.init_components(XFEATURE_MASK_XTILE)\n",
            ),
        ),
    ),
)
