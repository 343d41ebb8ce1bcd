"""The alternate signal stack, and how large a signal frame can get: what a host permission has to fit into.

A frame holds the register image in the user format, so a process that may use tile data needs larger stacks. The kernel
looks at both ends: a permission is refused while an alternate stack is too small for it, and a stack is refused while
the permission needs a larger one. The two ends do not count the same: see ``sigaltstack_size_valid``.

Source: arch/x86/kernel/signal.c, init_sigframe_size(), get_sigframe_size() and sigaltstack_size_valid();
arch/x86/kernel/fpu/signal.c, fpu__get_fpstate_size(); xstate.c, validate_sigaltstack(); kernel/signal.c,
do_sigaltstack().
"""

from __future__ import annotations

from typing import Final

from fpu_core.config import FpuConfig
from fpu_core.errors import Errno
from fpu_core.fpu import Fpu
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC

#: The least size of an alternate stack that sigaltstack(2) accepts. Source: include/uapi/asm/signal.h.
MINSIGSTKSZ: Final = 2048
#: FP_XSTATE_MAGIC2 behind the image, and the fsave area in front of it that a 32-bit frame has. In bytes.
FP_XSTATE_MAGIC2_BYTES: Final = 4
_FREGS_STATE_BYTES: Final = 112
#: The largest of the siginfo and ucontext structures (the 32-bit one), and what aligning frame and image may cost.
_SIGINFO_UCONTEXT_BYTES: Final = 736
_FRAME_ALIGN: Final = 16
_XSAVE_PADDING: Final = 63


def get_sigframe_size(config: FpuConfig) -> int:
    """Return the bytes of the largest signal frame of this host: what AT_MINSIGSTKSZ tells a program."""
    size = _SIGINFO_UCONTEXT_BYTES + (_FRAME_ALIGN - 1) + _fpstate_size(config) + _XSAVE_PADDING
    return (size + _FRAME_ALIGN - 1) & -_FRAME_ALIGN


def _fpstate_size(config: FpuConfig) -> int:
    """fpu__get_fpstate_size(): the register part of the largest frame, with all that can stand beside the image."""
    return config.user.max_size + (FP_XSTATE_MAGIC2_BYTES if config.xsave else 0) + _FREGS_STATE_BYTES


def validate_sigaltstack(fpu: Fpu, user_size: int) -> bool:
    """Whether every alternate stack of the process has room for a frame with an image of ``user_size`` bytes."""
    config = fpu.host.config
    needed = get_sigframe_size(config) - config.user.max_size + user_size
    return not any(0 < thread.sas_ss_size < needed for thread in fpu.leader.threads)


def sigaltstack_size_valid(fpu: Fpu, size: int) -> bool:
    """Whether an alternate stack of ``size`` bytes fits what the process is permitted to use.

    The frame is counted without the magic word and the fsave area, which ``validate_sigaltstack`` does count, and the
    comparison is ``>`` where that one has ``>=``: a stack can be accepted here that would have been in the way of the
    permission.
    """
    config = fpu.host.config
    if not config.has_xfd and not fpu.host.strict_sigaltstack_size:
        return True
    perm = fpu.leader.perm
    if size > get_sigframe_size(config) - _fpstate_size(config) + perm.user_state_size:
        return True
    return not fpu.host.strict_sigaltstack_size and not perm.state_perm & XFEATURE_MASK_USER_DYNAMIC


def sigaltstack(fpu: Fpu, size: int | None) -> Errno:
    """sigaltstack(2) by ``fpu``: set a stack of ``size`` bytes, or none at all (SS_DISABLE) with None.

    ENOMEM leaves the old one. A size of 0 is not SS_DISABLE: it is too small.
    """
    if size is not None and (size < MINSIGSTKSZ or not sigaltstack_size_valid(fpu, size)):
        return Errno.ENOMEM
    fpu.sas_ss_size = 0 if size is None else size
    return Errno.OK
