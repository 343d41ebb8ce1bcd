"""XFD is in step before a signal handler's registers are loaded.

Reference: arch/x86/kernel/fpu/core.c, fpu__clear_user_states().
"""

from __future__ import annotations

from fpu_core.sched import switch_fpu_return, switch_to
from fpu_core.sigframe import fpu_restore_sig
from fpu_core.task import clone_task, use_feature
from fpu_core.usermem import UserMemory
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA as TILE_DATA
from tests.core.rig import Rig


def test_xfd_is_in_step_where_there_is_no_frame_to_look_at() -> None:
    """No restore was tried, so nothing has brought the register in step before the clearing does (B2)."""
    rig = Rig.create()
    rig.permit(guest=False)
    use_feature(rig.fpu, 18, 0, b"tile")
    other = clone_task(rig.fpu, "other", thread=True)
    switch_to(rig.cpu, other)
    switch_fpu_return(other)
    switch_to(rig.cpus[0], rig.fpu)
    assert (rig.cpu.xfd, rig.fpu.fpstate.xfd) == (TILE_DATA, 0)
    assert fpu_restore_sig(rig.fpu, UserMemory(0x1000, 4096), 0)
    assert rig.cpu.xfd == rig.cpu.xfd_cache == 0
    rig.check()
