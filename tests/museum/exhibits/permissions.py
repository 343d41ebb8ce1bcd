"""Bugs of permissions, and of the boot configuration they are computed from."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Mutant, Patch

EXHIBITS: Final = (
    Mutant(
        id="B5",
        title="A granted permission replaces the ones before",
        fix="x86/fpu/xstate: Fix the ARCH_REQ_XCOMP_PERM implementation; March 2022, 063452fd94d1",
        breaks="permissions_only_grow",
        patches=(
            Patch(
                "fpu_core.permission",
                "    perm.user_state_size = config.user_size(mask)\n    perm.state_perm = mask & config",
                "    perm.user_state_size = config.user_size(mask)\n"
                "    mask &= ~perm.state_perm\n"
                "    perm.state_perm = mask & config",
            ),
        ),
    ),
    Mutant(
        id="B6",
        title="A granted permission loses its supervisor features",
        fix="x86/fpu/xstate: Always preserve non-user xfeatures/flags in __state_perm; posted November 2023",
        breaks="permissions_only_grow",
        patches=(
            Patch(
                "fpu_core.permission",
                "mask & config.rules.user_supported if config.rules.perm_loses_supervisor else mask\n",
                "mask & config.rules.user_supported\n",
            ),
        ),
    ),
    Mutant(
        id="B7",
        title="The size of a permission leaves the supervisor features out",
        fix="x86/fpu/xstate: Handle supervisor states in XSTATE permissions; March 2022, 781c64bfcb73",
        breaks="room_for_every_feature",
        patches=(
            Patch(
                "fpu_core.permission",
                "    perm.state_size = config.kernel_size(mask)\n",
                "    perm.state_size = config.kernel_size(mask & config.rules.user_supported)\n",
            ),
        ),
    ),
    Mutant(
        id="B19",
        title="Growth asks a second, stale copy of the permission",
        fix="x86/fpu: Drop @perm from guest pseudo FPU container; 2025",
        breaks="one permission record a process: what is permitted before the first vCPU counts",
        patches=(
            Patch(
                "fpu_core.guest",
                "    if host.config.rules.guest_keeps_perm:\n"
                "        guest.perm = group_perm(fpu, guest=True).state_perm\n",
                "    guest.perm = host.config.guest_default_features\n",
            ),
            Patch(
                "fpu_core.realloc",
                "    result = _grow(fpu, guest, perm, xfeatures)\n",
                "    stale = StatePerm(guest.perm, perm.state_size, perm.user_state_size)\n"
                "    result = _grow(fpu, guest, stale, xfeatures)\n",
            ),
        ),
    ),
    Mutant(
        id="B34",
        title="PKRU is managed although the kernel has not enabled protection keys",
        fix="x86/fpu: Fix PKRU covert channel; August 2023",
        breaks="PKRU in XCR0 only with CR4.PKE (OSPKE)",
        patches=(Patch("fpu_core.config", '    XFEATURE_PKRU: "OSPKE",\n', '    XFEATURE_PKRU: "FPU",\n'),),
    ),
)
