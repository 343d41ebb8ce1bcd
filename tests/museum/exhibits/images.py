"""Bugs of images and containers: what is in memory, how large it is, and where in it a component lies."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Mutant, Patch

EXHIBITS: Final = (
    Mutant(
        id="B1",
        title="A guest image keeps state that its XFD forbids to load",
        fix="x86/fpu: Clear XSTATE_BV[i] in guest XSAVE state whenever XFD[i]=1; January 2026, b45f72177594",
        breaks="no_hidden_state_in_images",
        patches=(
            Patch(
                "fpu_core.guest",
                "    if not live:\n        fpstate.xstate_bv &= ~xfd\n    fpstate.xfd = xfd\n",
                "    fpstate.xfd = xfd\n",
            ),
        ),
    ),
    Mutant(
        id="B9",
        title="A new context claims features beyond its buffer",
        fix="x86/fpu: Exclude dynamic states from init_fpstate; October 2022, a401f45e3875",
        breaks="room_for_every_feature",
        patches=(
            Patch(
                "fpu_core.fpstate",
                "        xfeatures=config.kernel.default_features,\n",
                "        xfeatures=config.kernel.max_features,\n",
            ),
        ),
    ),
    Mutant(
        id="B17",
        title="A guest buffer is allocated with the size of the user format",
        fix="x86/fpu: Fix guest FPU state buffer allocation size; February 2025, 1937e18cc3cf",
        breaks="ledger_balances, and room_for_every_feature where the user format is the smaller one",
        patches=(
            Patch(
                "fpu_core.guest",
                "    size = host.config.guest_default_size\n",
                "    size = host.config.user.default_size\n",
            ),
        ),
    ),
    Mutant(
        id="B18",
        title="A vCPU's features are not those of its container",
        fix="x86/fpu/xstate: Fix inconsistencies in guest FPU xfeatures; March 2025, dda366083e5f",
        breaks="guest_features_are_the_containers",
        patches=(
            Patch(
                "fpu_core.guest",
                "    guest.xfeatures = guest.fpstate.xfeatures\n",
                "    guest.xfeatures = host.config.user.default_features\n",
            ),
        ),
    ),
    Mutant(
        id="B36",
        title="The init image has no MXCSR",
        fix="x86/fpu: Make init_fpstate correct with optimized XSAVE; June 2021, f9dfb5e390fa",
        breaks="MXCSR of the init state is 0x1f80",
        patches=(
            Patch(
                "fpu_core.fpstate",
                '        struct.pack_into("<I", fpstate.regs, MXCSR_OFFSET, MXCSR_INIT)\n',
                "",
            ),
        ),
    ),
    Mutant(
        id="B46",
        title="An XFD write for a vCPU that is not loaded leaves hidden state",
        fix="",
        breaks="no_hidden_state_in_images",
        patches=(
            Patch(
                "fpu_core.guest",
                "    live = fpstate.in_use and fpu is not None and not fpu.need_load\n",
                "    live = fpu is None or not fpu.need_load\n",
            ),
        ),
    ),
)
