"""Bugs of saving and restoring: the swap, growth, the restore mask, XFD at the VM exit."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Mutant, Patch

EXHIBITS: Final = (
    Mutant(
        id="B40",
        title="A VM exit does not synchronise XFD",
        fix="",
        breaks="xfd_cache_is_the_register",
        patches=(Patch("host_agent.kvm.intercept", "        sync_guest_vmexit_xfd_state(cpu)\n", ""),),
    ),
    Mutant(
        id="B41",
        title="XFD_ERR of the guest stays in the register",
        fix="",
        breaks="xfd_err_is_the_guests",
        patches=(
            Patch(
                "host_agent.kvm.run",
                "        if vcpu.guest.xfd_err:\n            cpu.xfd_err = 0\n",
                "",
            ),
        ),
    ),
    Mutant(
        id="B43",
        title="Growth of a preempted context saves somebody else's registers",
        fix="",
        breaks="what was loaded before growth is read after it",
        patches=(
            Patch(
                "fpu_core.realloc",
                "    if active and fpu.need_load:\n"
                "        fpregs_restore_userregs(fpu)  # under the old XFD: it is the old image that is loaded\n",
                "",
            ),
        ),
    ),
    Mutant(
        id="B45",
        title="A restore leaves the features it has no room for as they are",
        fix="",
        breaks="no_foreign_register",
        patches=(
            Patch(
                "fpu_core.context",
                "    mask &= config.kernel.max_features\n",
                "    mask &= fpstate.xfeatures\n",
            ),
        ),
    ),
)
