"""The host task's own life: user-mode use of a feature, its #NM, clone, exec, exit; and tasks with no user mode.

Source: arch/x86/kernel/traps.c, handle_xfd_event(); arch/x86/kernel/fpu/core.c, fpu_clone(), fpu_flush_thread();
xstate.c, xfd_enable_feature() and avx512_status(); arch/x86/kernel/shstk.c, shstk_setup().
"""

from __future__ import annotations

import enum
from typing import Final

from fpu_core.alloc import Account
from fpu_core.context import running_cpu, save_into
from fpu_core.cpu import Vector
from fpu_core.errors import Errno, FieldError, core_assert
from fpu_core.fpstate import task_fpstate
from fpu_core.fpu import Fpu, FpuHost, StatePerm, TaskKind
from fpu_core.realloc import Reallocated, ReallocFailed, realloc_task_fpstate
from fpu_core.sched import read_pkru, set_task_pkru, switch_fpu_return
from fpu_core.xfeature import (
    XFEATURE_CET_USER,
    XFEATURE_MASK_CET_USER,
    XFEATURE_MASK_PASID,
    XFEATURE_MASK_USER_DYNAMIC,
    XFEATURE_PKRU,
)

#: struct cet_user_state: user_cet, user_ssp. SDM vol. 1, 13.5.9; SHSTK_EN is bit 0 of IA32_U_CET.
_USER_SSP_OFFSET: Final = 8
_CET_SHSTK_EN: Final = 1


class Signal(enum.Enum):
    """What a task gets when its #NM cannot be served."""

    #: No permission: SIGILL, si_code ILL_ILLOPC.
    SIGILL = "SIGILL"
    #: No memory: a forced SIGSEGV.
    SIGSEGV = "SIGSEGV"


def use_feature(fpu: Fpu, feature: int, offset: int, data: bytes) -> Vector | Signal | Reallocated | None:
    """A task in user mode uses ``feature``, and loads ``data`` into it where there is any.

    None if it just worked; ``Reallocated`` if #NM grew the container first; a ``Signal`` if #NM could not be served;
    a ``Vector`` if the processor refused for another reason.
    """
    core_assert(fpu.task_fpstate is None, "user mode, so no guest is swapped in")
    cpu = running_cpu(fpu)
    switch_fpu_return(fpu)
    fault = cpu.register_fault(feature, cpu.xcr0)
    grown: Reallocated | None = None
    if fault is Vector.NM and cpu.xfd_err:
        served = handle_xfd_event(fpu)
        if isinstance(served, Signal):
            return served
        grown = served
        cpu = running_cpu(fpu)  # the allocation can sleep, so the task may have moved
        fault = cpu.register_fault(feature, cpu.xcr0)  # the instruction is executed again
    if fault is None and data:
        fault = cpu.write_register(feature, offset, data)
        if feature == XFEATURE_PKRU:
            fpu.pkru = read_pkru(cpu)  # the kernel looks at the switch only; here the two are always the same
    return fault if fault is not None else grown


def handle_xfd_event(fpu: Fpu) -> Reallocated | Signal | None:
    """#NM from user mode: XFD_ERR is read and cleared, the container grows, and the instruction runs again."""
    cpu = running_cpu(fpu)
    xfd_err, cpu.xfd_err = cpu.xfd_err, 0
    result = xfd_enable_feature(fpu, xfd_err)
    if isinstance(result, ReallocFailed):
        return Signal.SIGILL if result.errno is Errno.EPERM else Signal.SIGSEGV
    return result


def xfd_enable_feature(fpu: Fpu, xfd_err: int) -> Reallocated | ReallocFailed | None:
    """Grow the task's container for the features in ``xfd_err``; None where none of them is dynamic."""
    dynamic = xfd_err & XFEATURE_MASK_USER_DYNAMIC
    if not dynamic:
        if fpu.host.tracer is not None:
            fpu.host.tracer.pr_err(f"x86/fpu: xfd_err={xfd_err:#x}")
        return None
    return realloc_task_fpstate(fpu, dynamic)


def clone_task(parent: Fpu, name: str, *, thread: bool, ssp: int = 0) -> Fpu:
    """Make a task as clone(2) does: default container, the parent's registers in it, dynamic state not inherited.

    A thread shares the group's permission; a new process starts with a copy of it, lock included. The parent must be
    running. ``ssp`` is the child's own shadow stack pointer, 0 to keep the parent's; ``FieldError`` where the parent
    has no shadow stack. PASID belongs to an address space and is not handed down. Source: fpu_clone().
    """
    cpu = running_cpu(parent)
    core_assert(parent.task_fpstate is None, "a task clones in the kernel's own context, not inside KVM_RUN")
    switch_fpu_return(parent)
    if ssp and not cpu.xinuse & XFEATURE_MASK_CET_USER:
        raise FieldError("ssp", "0, for the parent has no shadow stack", hex(ssp))
    child = Fpu(parent.host, name, account=parent.account, leader=parent.leader if thread else None)
    child.pkru = read_pkru(cpu)
    child.need_load = True
    save_into(cpu, parent, child.fpstate)
    child.fpstate.xstate_bv &= ~XFEATURE_MASK_PASID
    if ssp:
        _update_fpu_shstk(child, ssp)
    if not thread:
        child.sas_ss_size = parent.sas_ss_size  # a thread has none: two threads on one signal stack would be a disaster
        _inherit(child.perm, parent.leader.perm)
        _inherit(child.guest_perm, parent.leader.guest_perm)
    return child


def _update_fpu_shstk(fpu: Fpu, ssp: int) -> None:
    """Write the shadow stack pointer into the image, beside the control word in front of it."""
    config, fpstate = fpu.host.config, fpu.fpstate
    at = config.table.offset(fpstate.xfeatures, XFEATURE_CET_USER, compacted=config.compacted) + _USER_SSP_OFFSET
    fpstate.regs[at : at + 8] = ssp.to_bytes(8, "little")


def enable_shadow_stack(fpu: Fpu, ssp: int) -> Errno:
    """arch_prctl(ARCH_SHSTK_ENABLE) by a running task, with the shadow stack at ``ssp``: CET_USER comes into use."""
    cpu = running_cpu(fpu)
    if not fpu.host.config.kernel.default_features & XFEATURE_MASK_CET_USER:
        return Errno.EOPNOTSUPP
    switch_fpu_return(fpu)  # fpregs_lock_and_load()
    cpu.write_register(XFEATURE_CET_USER, 0, _CET_SHSTK_EN.to_bytes(8, "little") + ssp.to_bytes(8, "little"))
    return Errno.OK


def create_worker(host: FpuHost, name: str, kind: TaskKind, *, account: Account, leader: Fpu | None = None) -> Fpu:
    """Make a kernel thread, or a user worker of ``leader``'s process: nothing is inherited, nothing will be saved.

    Source: fpu_clone() with ``minimal``: TIF_NEED_FPU_LOAD is set, so that no switch takes the registers for its own.
    """
    core_assert((kind is TaskKind.USER_WORKER) == (leader is not None), f"{kind.value} {name} of {leader}")
    fpu = Fpu(host, name, account=account, leader=leader, kind=kind)
    fpu.need_load = True
    return fpu


def avx512_status(fpu: Fpu) -> int | None:
    """AVX512_elapsed_ms of /proc/PID/arch_status: milliseconds since AVX-512 was last saved, -1 for never.

    None where there is no such line: no AVX-512 here, or a task with no registers (bug B30).
    """
    if fpu.is_worker or not fpu.host.config.caps.AVX512F:
        return None
    return -1 if fpu.avx512_timestamp is None else fpu.host.jiffies - fpu.avx512_timestamp


def _inherit(to: StatePerm, of: StatePerm) -> None:
    to.state_perm, to.state_size, to.user_state_size = of.state_perm, of.state_size, of.user_state_size


def exec_task(fpu: Fpu) -> None:
    """execve(2): default container, default permissions, init registers; a grown container is given back.

    Afterwards no CPU's registers may be taken for this task's (bug B4). Mainline, as we read it, resets the pointer and
    forgets the grown container; the ledger here would notice.
    """
    core_assert(fpu.task_fpstate is None, "exec inside KVM_RUN")
    _free_grown(fpu)
    config = fpu.host.config
    fpu.perm = StatePerm(config.kernel.default_features, config.kernel.default_size, config.user.default_size)
    fpu.guest_perm = StatePerm(config.guest_default_features, config.guest_default_size, config.user.default_size)
    fpu.embedded = task_fpstate(config)
    fpu.fpstate = fpu.embedded
    fpu.last_cpu = -1
    fpu.need_load = True
    fpu.sas_ss_size = 0
    set_task_pkru(fpu, config.init_pkru)


def exit_task(fpu: Fpu) -> None:
    """The task is gone: its container goes back, and no CPU may take its registers for somebody's."""
    core_assert(fpu.task_fpstate is None, "exit inside KVM_RUN")
    cpu = fpu.cpu
    if cpu is not None:
        cpu.current = None
        fpu.cpu = None
        if cpu.owner is fpu:
            cpu.owner = None
    _free_grown(fpu)
    fpu.threads.pop(fpu, None)


def _free_grown(fpu: Fpu) -> None:
    old = fpu.fpstate
    if old.is_valloc:
        fpu.host.allocator.vfree(fpu.account, old.allocated_bytes)
        if fpu.host.tracer is not None:
            fpu.host.tracer.vfree(old)
        fpu.fpstate = fpu.embedded
