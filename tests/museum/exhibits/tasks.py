"""Bugs in the life of a host task: clone, exec, its scheduling, kernel_fpu sections."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Mutant, Patch

EXHIBITS: Final = (
    Mutant(
        id="B4",
        title="exec leaves another CPU's registers valid for the task",
        fix="x86/fpu: Invalidate FPU state correctly on exec(); August 2023, 1f69383b203e",
        breaks="valid_registers_are_the_image",
        patches=(
            Patch(
                "fpu_core.task",
                "    fpu.fpstate = fpu.embedded\n    fpu.last_cpu = -1\n",
                "    fpu.fpstate = fpu.embedded\n    if fpu.cpu is not None:\n        fpu.cpu.owner = None\n",
            ),
        ),
    ),
    Mutant(
        id="B25",
        title="A context switch loads PKRU of the task before",
        fix="x86/fpu: Correct pkru/xstate inconsistency; stable, February 2022",
        breaks="the PKRU register is the running task's",
        patches=(
            Patch(
                "fpu_core.sched",
                "    if cpu.current is not None:\n        switch_fpu(cpu.current)\n    cpu.current = fpu\n",
                "    stale = cpu.current\n"
                "    if cpu.current is not None:\n        switch_fpu(cpu.current)\n    cpu.current = fpu\n",
            ),
            Patch(
                "fpu_core.sched",
                "        write_pkru(cpu, fpu.pkru)\n",
                "        write_pkru(cpu, fpu.pkru if stale is None else stale.pkru)\n",
            ),
        ),
    ),
    Mutant(
        id="B42",
        title="clone copies an image that the registers have overtaken",
        fix="",
        breaks="a child starts with its parent's registers, and no image is copied that is not the truth",
        patches=(
            Patch(
                "fpu_core.task",
                "    save_into(cpu, parent, child.fpstate)\n",
                "    child.fpstate.regs[:] = parent.fpstate.regs[: len(child.fpstate.regs)]\n"
                "    child.fpstate.xstate_bv = parent.fpstate.xstate_bv & child.fpstate.xfeatures\n",
            ),
        ),
    ),
)
