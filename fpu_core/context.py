"""Saving, restoring, and knowing whose registers the CPU holds.

``need_load`` clear means the registers are the truth and must be valid on this CPU; set means the memory image is, and
the registers may belong to anybody. Two marks say whether registers match an image: the CPU names its owner and the
task names its last CPU; either can be taken away to invalidate.

Source: arch/x86/kernel/fpu/context.h and core.c, save_fpregs_to_fpstate(), restore_fpregs_from_fpstate().
"""

from __future__ import annotations

from fpu_core.cpu import Cpu
from fpu_core.errors import CoreBug, core_assert
from fpu_core.fpstate import Fpstate
from fpu_core.fpu import Fpu
from fpu_core.xfeature import XFEATURE_MASK_FPSSE, XFEATURE_MASK_FPSTATE, XFEATURE_MASK_ZMM
from fpu_core.xsave import fxrstor, fxsave, xrstor, xsave_compacted, xsave_standard


def running_cpu(fpu: Fpu) -> Cpu:
    """Return the CPU ``fpu`` runs on; a task that is scheduled out executes nothing."""
    cpu = fpu.cpu
    if cpu is None:
        raise CoreBug(f"{fpu.name} executes while it is scheduled out")
    return cpu


def save_fpregs_to_fpstate(fpu: Fpu) -> None:
    """Save the registers into the active container with RFBM = its features; the registers keep their content.

    The use of AVX-512 is noted here, because it slows the core down and a scheduler in userspace may want to know.
    """
    save_into(running_cpu(fpu), fpu, fpu.fpstate)
    if fpu.fpstate.xstate_bv & XFEATURE_MASK_ZMM:
        fpu.avx512_timestamp = fpu.host.jiffies


def save_into(cpu: Cpu, fpu: Fpu, fpstate: Fpstate) -> None:
    """Save the live registers of ``fpu`` into any container; a clone's has less room and simply gets less."""
    config = cpu.config
    valid = xstate_op_valid(cpu, fpu, fpstate, fpstate.xfeatures)
    core_assert(valid, "save into {}: XFD and space disagree", fpstate)
    cpu.counters.saves += 1
    if cpu.tracer is not None:
        cpu.tracer.save(fpstate, fpstate.xfeatures)
    if config.compacted:
        xsave_compacted(cpu, fpstate, fpstate.xfeatures)
    elif config.xsave:
        xsave_standard(cpu, fpstate, fpstate.xfeatures, optimized=config.caps.XSAVEOPT)
    else:
        fxsave(cpu, fpstate)
        fpstate.xstate_bv = cpu.xinuse & XFEATURE_MASK_FPSSE  # no header says it: for the swap, and for readers
    cpu.interrupt_point()


def restore_fpregs_from_fpstate(cpu: Cpu, fpu: Fpu, fpstate: Fpstate, mask: int = XFEATURE_MASK_FPSTATE) -> None:
    """Load the registers from ``fpstate``, XFD first.

    XFD is written before the restore: with XFD set, a component the image holds could not be loaded. The mask is what
    the *kernel* handles and not what the container holds, so a component that an earlier owner left in the registers
    goes to its init state instead of leaking. Source: core.c, restore_fpregs_from_fpstate().
    """
    config = cpu.config
    cpu.xfd_update_state(fpstate.xfd)
    mask &= config.kernel.max_features
    core_assert(xstate_op_valid(cpu, fpu, fpstate, mask), "restore from {}: XFD and space disagree", fpstate)
    cpu.counters.restores += 1
    if cpu.tracer is not None:
        cpu.tracer.restore(fpstate, mask)
    fault = xrstor(cpu, fpstate, mask, supervisor=config.caps.XSAVES) if config.xsave else fxrstor(cpu, fpstate)
    if fault is not None:
        raise CoreBug(f"restore from {fpstate} raised {fault.name} in the kernel")
    cpu.interrupt_point()


def xstate_op_valid(cpu: Cpu, fpu: Fpu, fpstate: Fpstate, mask: int) -> bool:
    """Whether hardware XFD fits what is about to be moved. Source: xstate.c, xstate_op_valid() (debug builds).

    True if the container's XFD is in the register. If it is not although the container is the running task's active
    one, the register is out of date. Any other container (a clone's) is fine if it has room for all that is enabled.
    """
    if fpstate.xfd == cpu.xfd_cache:
        return True
    if fpstate is fpu.fpstate:
        return False
    return not mask & ~cpu.xfd_cache & ~fpstate.xfeatures


def fpregs_state_valid(fpu: Fpu, cpu: Cpu) -> bool:
    """Whether the registers of ``cpu`` hold the state of ``fpu``."""
    return cpu.owner is fpu and fpu.last_cpu == cpu.nr


def fpregs_mark_activate(fpu: Fpu, cpu: Cpu) -> None:
    """Say that the registers now are ``fpu``'s and the truth."""
    cpu.owner = fpu
    fpu.last_cpu = cpu.nr
    fpu.need_load = False


def fpregs_restore_userregs(fpu: Fpu) -> None:
    """Make the registers the truth again before the task, or the guest it runs, goes on."""
    cpu = running_cpu(fpu)
    core_assert(not fpu.is_worker, f"{fpu.name} never goes to user mode and has no user registers")
    if not fpregs_state_valid(fpu, cpu):
        restore_fpregs_from_fpstate(cpu, fpu, fpu.fpstate)
    fpregs_mark_activate(fpu, cpu)
