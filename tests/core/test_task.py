"""Host tasks: their own lazy growth on #NM, clone, exec, exit, and who may run on what registers.

Reference: arch/x86/kernel/traps.c, handle_xfd_event(); core.c, fpu_clone(), fpu_flush_thread(), switch_fpu().
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from fpu_core.context import fpregs_state_valid, save_fpregs_to_fpstate, xstate_op_valid
from fpu_core.cpu import Vector
from fpu_core.cpuid import CpuidProfile
from fpu_core.errors import CoreBug, Errno
from fpu_core.fpu import FPU_GUEST_PERM_LOCKED, Fpu
from fpu_core.realloc import Reallocated
from fpu_core.sched import (
    kernel_fpu_begin,
    kernel_fpu_end,
    read_pkru,
    set_task_pkru,
    switch_fpu_return,
    switch_to,
    write_pkru,
)
from fpu_core.swap import swap_in
from fpu_core.task import Signal, clone_task, exec_task, exit_task, handle_xfd_event, use_feature
from fpu_core.xfeature import XFEATURE_MASK_FPSSE, XFEATURE_MASK_XTILE_CFG
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA as TILE_DATA
from tests.core.rig import SPR, Lines, Rig, without_compaction


def _other(rig: Rig, name: str = "other") -> Fpu:
    fpu = Fpu(rig.host, name, account=rig.fpu.account)
    fpu.need_load = True
    return fpu


def _with_xsaveopt_alone() -> CpuidProfile:
    """Between XSAVE and XSAVEC: a processor whose XSAVE leaves out what is in its init state."""
    profile = without_compaction()
    return replace(profile, caps_override=profile.caps._replace(XSAVEOPT=True))


# -- #NM ---------------------------------------------------------------------------------------------------------------


def test_first_use_of_tile_data_grows_the_container() -> None:
    """#NM, XFD_ERR read and cleared, growth, and the instruction executes again; the second use just works."""
    rig = Rig.create()
    rig.permit(guest=False)
    assert use_feature(rig.fpu, 18, 0, b"tile") == Reallocated(2560, 10752, TILE_DATA)
    assert (rig.fpu.fpstate.size, rig.fpu.fpstate.xfd, rig.cpu.xfd, rig.cpu.xfd_err) == (10752, 0, 0, 0)
    assert rig.cpu.read_register(18).startswith(b"tile")
    assert use_feature(rig.fpu, 18, 4, b"more") is None
    rig.check()


@pytest.mark.parametrize(
    ("permitted", "signal"),
    [
        pytest.param(False, Signal.SIGILL, id="no permission: SIGILL"),
        pytest.param(True, Signal.SIGSEGV, id="no memory: SIGSEGV"),
    ],
)
def test_signal(permitted: bool, signal: Signal) -> None:
    """An #NM that cannot be served is a signal, and the task is as it was."""
    rig = Rig.create()
    if permitted:
        rig.permit(guest=False)
    rig.fail_allocations()
    use_feature(rig.fpu, 1, 0, b"xmm")
    assert use_feature(rig.fpu, 18, 0, b"tile") is signal
    assert (rig.fpu.fpstate.size, rig.cpu.xfd, rig.cpu.xfd_err) == (2560, TILE_DATA, 0)
    assert rig.cpu.read_register(1).startswith(b"xmm")
    rig.check()


def test_other_refusals_are_vectors() -> None:
    """CET is no register user code can load: #UD. Reserved MXCSR bits: #GP."""
    rig = Rig.create()
    assert use_feature(rig.fpu, 11, 0, b"x") is Vector.UD
    assert use_feature(rig.fpu, 0, 24, b"\0\0\1\0") is Vector.GP


def test_nm_with_nothing_dynamic_says_so() -> None:
    """An XFD_ERR without a dynamic feature grows nothing; the kernel prints an error."""
    tracer = Lines()
    rig = Rig.create(tracer=tracer)
    rig.cpu.xfd_err = 1 << 40
    assert handle_xfd_event(rig.fpu) is None
    assert tracer.lines[-1] == "x86/fpu: xfd_err=0x10000000000"
    assert rig.cpu.xfd_err == 0


def test_nm_of_cr0_ts_grows_nothing() -> None:
    """An #NM that XFD did not cause is no request for a larger container, whatever is armed."""
    tracer = Lines()
    rig = Rig.create(tracer=tracer)
    rig.permit(guest=False)
    rig.cpu.cr0_ts = True
    tracer.lines.clear()
    assert use_feature(rig.fpu, 18, 0, b"tile") is Vector.NM
    assert (rig.fpu.fpstate.size, rig.cpu.xfd_err, tracer.lines) == (2560, 0, [])


def test_preempted_and_migrated_while_growing() -> None:
    """The allocation sleeps and the task wakes up on another CPU: its instruction executes there."""
    rig = Rig.create()
    rig.permit(guest=False)
    intruder = _other(rig)
    use_feature(rig.fpu, 1, 0, b"mine")

    def preempt(_where: str) -> None:
        switch_to(rig.cpus[0], intruder)
        use_feature(intruder, 1, 0, b"theirs")
        switch_to(rig.cpus[1], rig.fpu)

    rig.host.preemptible = preempt
    assert isinstance(use_feature(rig.fpu, 18, 0, b"tile"), Reallocated)
    assert rig.cpu is rig.cpus[1]
    assert rig.cpus[1].read_register(18).startswith(b"tile")
    assert rig.cpus[1].read_register(1).startswith(b"mine")
    assert rig.cpus[0].read_register(1).startswith(b"theirs")
    assert not rig.cpus[0].xinuse & TILE_DATA
    rig.check()


# -- clone, exec, exit -------------------------------------------------------------------------------------------------


def test_clone_inherits_registers_and_no_dynamic_state() -> None:
    """The child starts with the parent's registers in a default container; its tiles are in their init state."""
    rig = Rig.create()
    rig.permit(guest=False)
    for nr, raw in ((1, b"xmm"), (9, b"\4\0\0\0"), (17, b"\1"), (18, b"tile")):
        use_feature(rig.fpu, nr, 0, raw)
    child = clone_task(rig.fpu, "child", thread=True)
    assert child.fpstate is child.embedded
    assert (child.fpstate.size, child.fpstate.xfd) == (2560, TILE_DATA)
    switch_to(rig.cpus[1], child)
    switch_fpu_return(child)
    cpu = rig.cpus[1]
    assert cpu.read_register(1).startswith(b"xmm")
    assert cpu.xinuse & (XFEATURE_MASK_XTILE_CFG | TILE_DATA) == XFEATURE_MASK_XTILE_CFG
    assert read_pkru(cpu) == 4, "PKRU as it is in the parent's register, not as it was when it last lost the CPU"


def test_clone_of_a_preempted_parent() -> None:
    """The parent's image is loaded before the child is made; memory is never copied to memory (bug B42)."""
    rig = Rig.create()
    use_feature(rig.fpu, 7, 0, b"zmm")
    switch_to(rig.cpus[1], rig.fpu)
    child = clone_task(rig.fpu, "child", thread=False)
    assert not rig.fpu.need_load
    switch_to(rig.cpus[0], child)
    switch_fpu_return(child)
    assert rig.cpus[0].read_register(7).startswith(b"zmm")


@pytest.mark.parametrize("thread", [True, False])
def test_clone_and_permissions(thread: bool) -> None:
    """A thread shares its process's permissions; a process starts with a copy, lock included, and goes its own way."""
    rig = Rig.create()
    rig.guest()
    child = clone_task(rig.fpu, "child", thread=thread)
    assert (child.leader is rig.fpu) == thread
    assert child.leader.guest_perm.state_perm & FPU_GUEST_PERM_LOCKED
    rig.permit(guest=False)
    assert bool(child.leader.perm.state_perm & TILE_DATA) == thread


def test_exec() -> None:
    """Default container, default permissions, init registers, PKRU too; the grown container goes back."""
    rig = Rig.create()
    rig.permit(guest=False)
    use_feature(rig.fpu, 18, 0, b"tile")
    use_feature(rig.fpu, 9, 0, b"\4\0\0\0")
    exec_task(rig.fpu)
    assert rig.fpu.account.used_bytes == 0
    assert not rig.fpu.perm.state_perm & TILE_DATA
    assert not any(fpregs_state_valid(rig.fpu, cpu) for cpu in rig.cpus), "no CPU may take old registers for its (B4)"
    switch_fpu_return(rig.fpu)
    assert rig.cpu.xinuse == 1 << 9
    assert (rig.cpu.xfd, read_pkru(rig.cpu)) == (TILE_DATA, 0x55555554)
    rig.check()


@pytest.mark.parametrize("nr", [0, 1])
def test_exec_of_a_task_that_ran_elsewhere(nr: int) -> None:
    """Registers left behind on a CPU are not the new program's, although it still names the task as owner (B4)."""
    rig = Rig.create()
    switch_to(rig.cpus[nr], rig.fpu)
    use_feature(rig.fpu, 1, 0, b"before exec")
    switch_to(rig.cpus[nr], None)
    exec_task(rig.fpu)
    assert rig.cpus[nr].owner is rig.fpu
    switch_to(rig.cpus[nr], rig.fpu)
    switch_fpu_return(rig.fpu)
    assert not any(rig.cpu.read_register(1))


def test_exit_gives_back_and_disowns() -> None:
    """The container goes back, and the CPU's registers are nobody's."""
    rig = Rig.create()
    rig.permit(guest=False)
    use_feature(rig.fpu, 18, 0, b"tile")
    exit_task(rig.fpu)
    assert rig.fpu.account.used_bytes == 0
    assert rig.cpus[0].owner is None
    assert rig.cpus[0].current is None
    assert (rig.fpu.cpu, rig.fpu.fpstate) == (None, rig.fpu.embedded)
    assert rig.fpu not in rig.fpu.threads


def test_not_while_a_guest_is_swapped_in() -> None:
    """Clone, exec, exit and user mode are not inside KVM_RUN: each is our bug there."""
    rig = Rig.create()
    swap_in(rig.fpu, rig.guest())
    for act in (
        lambda: clone_task(rig.fpu, "child", thread=True),
        lambda: exec_task(rig.fpu),
        lambda: exit_task(rig.fpu),
        lambda: use_feature(rig.fpu, 1, 0, b"x"),
    ):
        with pytest.raises(CoreBug):
            act()


# -- the scheduler -----------------------------------------------------------------------------------------------------


def test_lazy_return_costs_no_restore() -> None:
    """Nobody touched the registers meanwhile: coming back to the same CPU restores nothing."""
    rig = Rig.create()
    use_feature(rig.fpu, 1, 0, b"xmm")
    switch_to(rig.cpus[0], None)
    switch_to(rig.cpus[0], rig.fpu)
    restores = rig.cpu.counters.restores
    switch_fpu_return(rig.fpu)
    assert rig.cpu.counters.restores == restores
    assert rig.cpu.read_register(1).startswith(b"xmm")


def test_registers_of_another_task_are_not_seen() -> None:
    """The restore mask is the kernel's whole set, so tiles of the task before go to their init state (bug B45)."""
    rig = Rig.create()
    rig.permit(guest=False)
    use_feature(rig.fpu, 18, 0, b"secret")
    other = _other(rig)
    switch_to(rig.cpus[0], other)
    switch_fpu_return(other)
    assert not rig.cpus[0].xinuse & TILE_DATA


def test_kernel_fpu_in_between() -> None:
    """A kernel_fpu section has the default MXCSR and saves the task first, which finds its own bytes again."""
    rig = Rig.create()
    use_feature(rig.fpu, 1, 0, b"mine")
    use_feature(rig.fpu, 0, 24, (0x1FA0).to_bytes(4, "little"))
    kernel_fpu_begin(rig.cpu)
    assert rig.cpu.mxcsr == 0x1F80
    rig.cpu.write_register(1, 0, b"kernel")
    with pytest.raises(CoreBug, match="where none may begin"):
        kernel_fpu_begin(rig.cpu)
    with pytest.raises(CoreBug, match="inside a kernel_fpu section"):
        switch_to(rig.cpu, None)
    kernel_fpu_end(rig.cpu)
    switch_fpu_return(rig.fpu)
    assert rig.cpu.read_register(1).startswith(b"mine")
    assert rig.cpu.mxcsr == 0x1FA0


def test_pkru_is_the_running_tasks() -> None:
    """A context switch loads the PKRU of the task that gets the CPU, and saves the other's (bug B25)."""
    rig = Rig.create()
    other = _other(rig)
    use_feature(rig.fpu, 9, 0, b"\4\0\0\0")
    switch_to(rig.cpus[0], other)
    assert (read_pkru(rig.cpus[0]), rig.fpu.pkru) == (other.pkru, 4)
    switch_to(rig.cpus[0], rig.fpu)
    assert read_pkru(rig.cpus[0]) == 4


def test_pkru_is_switched_whole() -> None:
    """The upper half of the PKRU component is reserved; what one context puts there is never another's to read."""
    rig = Rig.create()
    rig.cpu.write_register(9, 0, b"\1\0\0\0leak")
    write_pkru(rig.cpu, 2)
    assert rig.cpu.read_register(9) == b"\2" + bytes(7)


def test_a_host_without_protection_keys_has_no_pkru() -> None:
    """Whatever a task is given, it reads 0."""
    rig = Rig.create("goldmont")
    set_task_pkru(rig.fpu, 5)
    assert (rig.fpu.pkru, read_pkru(rig.cpu)) == (0, 0)


@pytest.mark.parametrize(
    ("xfd", "cache", "active", "mask", "xfeatures", "valid"),
    [
        pytest.param(0, 0, True, 0x60007, 0x60007, True, id="the container's XFD is in the register"),
        pytest.param(TILE_DATA, 0, True, 0x20007, 0x20007, False, id="the active container's is not: out of date"),
        pytest.param(TILE_DATA, 0, False, 0x20007, 0x20007, True, id="another container with room for what is asked"),
        pytest.param(TILE_DATA, 0, False, 0x60007, 0x20007, False, id="without room for an enabled component"),
        pytest.param(0, TILE_DATA, False, 0x60007, 0x20007, True, id="without room for one that XFD disables"),
        pytest.param(0, TILE_DATA, False, 0x60007, 0x20003, False, id="and for one that it does not"),
    ],
)
def test_when_hardware_xfd_fits_a_save_or_a_restore(
    xfd: int, cache: int, active: bool, mask: int, xfeatures: int, valid: bool
) -> None:
    """The kernel's own check, rule by rule. Source: xstate.c, xstate_op_valid()."""
    rig = Rig.create()
    fpstate = rig.fpu.fpstate if active else _other(rig).fpstate
    fpstate.xfd, fpstate.xfeatures, rig.cpu.xfd_cache = xfd, xfeatures, cache
    assert xstate_op_valid(rig.cpu, rig.fpu, fpstate, mask) is valid


@pytest.mark.parametrize(
    ("profile", "bv", "saved_bytes"),
    [
        pytest.param(SPR, 1 << 2 | 1 << 9, 256 + 8, id="XSAVES: what is in use"),
        pytest.param(_with_xsaveopt_alone(), 1 << 2, 256, id="XSAVEOPT: what is in use"),
        pytest.param(without_compaction(), 1 << 2, 160 + 256 + 256 + 3 * 64 + 512 + 1024, id="XSAVE: all there is"),
        pytest.param(without_compaction(xsave=False), 0, 160 + 256, id="FXSAVE: x87 and SSE, always"),
    ],
)
def test_what_a_save_moves(profile: CpuidProfile | str, bv: int, saved_bytes: int) -> None:
    """Each instruction, counted: saves are one each, and the image says what was in use."""
    rig = Rig.create(profile)
    if rig.config.xsave:
        use_feature(rig.fpu, 2, 0, b"ymm")
    rig.cpu.init_components(XFEATURE_MASK_FPSSE)
    before = rig.cpu.counters.bytes_saved
    for count in (1, 2, 3):
        save_fpregs_to_fpstate(rig.fpu)
        assert (rig.cpu.counters.saves, rig.cpu.counters.bytes_saved - before) == (count, count * saved_bytes)
    assert rig.fpu.fpstate.xstate_bv == bv


def test_errno_values_are_linux() -> None:
    """The errno values are those of Linux, positive."""
    assert (Errno.EPERM, Errno.ENOMEM, Errno.EFAULT, Errno.EBUSY, Errno.EINVAL) == (1, 12, 14, 16, 22)
    assert (Errno.ENOSPC, Errno.EOPNOTSUPP) == (28, 95)
