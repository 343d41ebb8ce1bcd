"""Permission to use a dynamic feature: per process, separate for its own tasks and for its guests.

Permission belongs to the process, is given once and never taken back, short of exec. For guests it is locked by the
first vCPU.

Source: arch/x86/kernel/fpu/xstate.c, fpu_xstate_prctl(), xstate_request_perm() and __xstate_request_perm();
arch/x86/kernel/process_64.c, do_arch_prctl_64(); Documentation/arch/x86/xstate.rst.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from fpu_core.altstack import validate_sigaltstack
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
_FACILITIES: Final = {XFEATURE_XTILE_DATA: XFEATURE_MASK_XTILE_DATA}

#: Where a user mapping can begin (mmap_min_addr) and where user addresses end (TASK_SIZE_MAX, 4-level paging).
_MMAP_MIN_ADDR: Final = 0x1_0000
_TASK_SIZE_MAX: Final = 0x7FFF_FFFF_F000
_U32: Final = 0xFFFF_FFFF
_U64: Final = 0xFFFF_FFFF_FFFF_FFFF


def access_ok(address: int) -> bool:
    """Whether eight bytes at ``address`` could be a user mapping at all. Source: arch/x86/include/asm/uaccess_64.h."""
    return _MMAP_MIN_ADDR <= address <= _TASK_SIZE_MAX - 8


def arch_prctl(fpu: Fpu, op: int, arg: int, *, writable: Callable[[int], bool] = access_ok) -> tuple[Errno, int | None]:
    """arch_prctl(2) by ``fpu``: the result, and for a GET that worked the mask that put_user() stored.

    ``op`` is an ``int`` to the kernel and ``arg`` an ``unsigned long``: higher bits do not arrive. For a GET ``arg`` is
    the user address of the answer, and ``writable`` says whether the process has memory there (EFAULT). An option that
    is none of the five is EINVAL. A 32-bit kernel, which this is not, has EOPNOTSUPP for the requests.
    """
    arg &= _U64
    match op & _U32:
        case XcompOp.GET_SUPP:
            value = get_supported(fpu)
        case XcompOp.GET_PERM | XcompOp.GET_GUEST_PERM as get:
            value = get_permitted(fpu, guest=get == XcompOp.GET_GUEST_PERM)
        case XcompOp.REQ_PERM | XcompOp.REQ_GUEST_PERM as request:
            return request_permission(fpu, arg, guest=request == XcompOp.REQ_GUEST_PERM), None
        case _:
            return Errno.EINVAL, None
    return (Errno.OK, value) if writable(arg) else (Errno.EFAULT, None)


def group_perm(fpu: Fpu, *, guest: bool) -> StatePerm:
    """Return the permission record that counts for ``fpu``: its group leader's."""
    return fpu.leader.guest_perm if guest else fpu.leader.perm


def lock_guest_perm(fpu: Fpu) -> None:
    """A first vCPU exists: from now on guest permissions cannot be extended. Sticky."""
    fpu.leader.guest_perm.state_perm |= FPU_GUEST_PERM_LOCKED


def guest_perm_locked(fpu: Fpu) -> bool:
    """Whether the process has had a vCPU."""
    return bool(fpu.leader.guest_perm.state_perm & FPU_GUEST_PERM_LOCKED)


def get_supported(fpu: Fpu) -> int:
    """ARCH_GET_XCOMP_SUPP: the user features of the host."""
    return fpu.host.config.user.max_features | fpu.host.config.legacy_features


def get_permitted(fpu: Fpu, *, guest: bool) -> int:
    """ARCH_GET_XCOMP_PERM and _GUEST_PERM: the user features permitted; supervisor bits and the lock are hidden."""
    return group_perm(fpu, guest=guest).state_perm & fpu.host.config.rules.user_supported


def request_permission(fpu: Fpu, feature: int, *, guest: bool) -> Errno:
    """ARCH_REQ_XCOMP_PERM and _GUEST_PERM for one feature number.

    The order of the checks is the kernel's: a number that no feature has is EINVAL, one that is not a facility or not
    on this processor EOPNOTSUPP; a permission that is there already is 0 even when the record is locked (EBUSY). Only a
    host permission has to fit the alternate signal stacks there are (ENOSPC): a guest's registers go into no frame.
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
    if not guest and not validate_sigaltstack(fpu, config.user_size(mask)):
        return Errno.ENOSPC
    _grant(fpu, perm, mask)
    return Errno.OK


def _grant(fpu: Fpu, perm: StatePerm, mask: int) -> None:
    """Store the wider permission; its three fields change together only."""
    config = fpu.host.config
    perm.state_size = config.kernel_size(mask)
    perm.user_state_size = config.user_size(mask)
    perm.state_perm = mask & config.rules.user_supported if config.rules.perm_loses_supervisor else mask
