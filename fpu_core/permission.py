"""Permission to use a dynamic feature: per process, separate for its own tasks and for its guests.

Source: arch/x86/kernel/fpu/xstate.c, fpu_xstate_prctl(), xstate_request_perm() and __xstate_request_perm();
Documentation/arch/x86/xstate.rst.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from fpu_core.config import FpuConfig
from fpu_core.errors import Errno
from fpu_core.fpu import FPU_GUEST_PERM_LOCKED, Fpu, StatePerm
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA, XFEATURE_XTILE_DATA


class XcompOp(enum.IntEnum):
    """The arch_prctl(2) operations. Source: arch/x86/include/uapi/asm/prctl.h."""

    GET_SUPP = 0x1021
    GET_PERM = 0x1022
    REQ_PERM = 0x1023
    GET_GUEST_PERM = 0x1024
    REQ_GUEST_PERM = 0x1025


#: What may be asked for, and the features it brings. XTILE_CFG (17) alone is not a facility.
_FACILITIES = {XFEATURE_XTILE_DATA: XFEATURE_MASK_XTILE_DATA}


def group_perm(fpu: Fpu, *, guest: bool) -> StatePerm:
    """Return the permission record that counts for ``fpu``: its group leader's."""
    return fpu.leader.guest_perm if guest else fpu.leader.perm


def lock_guest_perm(fpu: Fpu) -> None:
    """A first vCPU exists: from now on guest permissions cannot be extended. Sticky."""
    fpu.leader.guest_perm.state_perm |= FPU_GUEST_PERM_LOCKED


def get_supported(fpu: Fpu) -> int:
    """ARCH_GET_XCOMP_SUPP: the user features of the host."""
    return fpu.host.config.user.max_features | fpu.host.config.legacy_features


def get_permitted(fpu: Fpu, *, guest: bool) -> int:
    """ARCH_GET_XCOMP_PERM and _GUEST_PERM: the user features permitted; supervisor bits and the lock are hidden."""
    return group_perm(fpu, guest=guest).state_perm & fpu.host.config.rules.user_supported


def request_permission(fpu: Fpu, feature: int, *, guest: bool, threads: Iterable[Fpu] = ()) -> Errno:
    """ARCH_REQ_XCOMP_PERM and _GUEST_PERM for one feature number. ``threads``: those of the process beside ``fpu``.

    The order of the checks is the kernel's: a permission that is there already is 0 even when the record is locked,
    and ENOSPC, for a thread whose alternate signal stack could not hold the larger frame, comes last and for the
    process's own permission only.
    """
    config = fpu.host.config
    if not 0 <= feature < config.rules.xfeature_max:
        return Errno.EINVAL
    requested = _FACILITIES.get(feature, 0)
    if not requested or requested & ~config.user.max_features:
        return Errno.EOPNOTSUPP
    perm = group_perm(fpu, guest=guest)
    if perm.state_perm & requested == requested:
        return Errno.OK
    if guest and perm.state_perm & FPU_GUEST_PERM_LOCKED:
        return Errno.EBUSY
    mask = perm.state_perm | requested
    if not guest and not all(_altstack_holds(config, thread, mask) for thread in (fpu, *threads)):
        return Errno.ENOSPC
    _grant(config, perm, mask)
    return Errno.OK


def _altstack_holds(config: FpuConfig, thread: Fpu, mask: int) -> bool:
    """Whether the signal frame fits once ``mask`` is permitted. Exactly large enough is fine here.

    Source: arch/x86/kernel/fpu/xstate.c, validate_sigaltstack(). sigaltstack(2) itself wants one byte more.
    """
    needed = config.max_frame_size - config.user.max_size + config.user_size(mask)
    return thread.sas_ss_size == 0 or thread.sas_ss_size >= needed


def _grant(config: FpuConfig, perm: StatePerm, mask: int) -> None:
    """Store the wider permission; its three fields change together only."""
    perm.state_size = config.kernel_size(mask)
    perm.user_state_size = config.user_size(mask)
    perm.state_perm = mask & config.rules.user_supported if config.rules.perm_loses_supervisor else mask
