"""NT_X86_XSTATE: what a debugger reads and writes of a stopped task, always in the user format.

Sources: arch/x86/kernel/fpu/regset.c, xstateregs_get() and xstateregs_set(); kernel/ptrace.c, ptrace_regset().
"""

from __future__ import annotations

from typing import Final

from fpu_core.context import save_fpregs_to_fpstate
from fpu_core.errors import Errno, core_assert
from fpu_core.fpu import Fpu
from fpu_core.sched import set_task_pkru
from fpu_core.uabi import copy_uabi_to_xstate, copy_xstate_to_uabi

#: Bytes of one register of the set, as the regset's table says: a length must be a multiple of it.
_REGSET_SIZE: Final = 8


def ptrace_getregset(fpu: Fpu, length: int) -> bytes | Errno:
    """PTRACE_GETREGSET with an iovec of ``length`` bytes: at most what the host's largest image has."""
    if length % _REGSET_SIZE:
        return Errno.EINVAL
    image = xstateregs_get(fpu)
    return image if isinstance(image, Errno) else image[:length]


def ptrace_setregset(fpu: Fpu, buf: bytes) -> Errno:
    """PTRACE_SETREGSET with an iovec of ``buf``: what is behind the host's largest image is not looked at."""
    if len(buf) % _REGSET_SIZE:
        return Errno.EINVAL
    return xstateregs_set(fpu, buf[: fpu.host.config.user.max_size])


def xstateregs_get(fpu: Fpu) -> bytes | Errno:
    """The task's state in ``user.max_size`` bytes, whatever its container has room for; PKRU is the task's own."""
    config = fpu.host.config
    if not config.xsave:
        return Errno.ENODEV
    _outside_guest(fpu)
    if fpu.cpu is not None and not fpu.need_load:
        save_fpregs_to_fpstate(fpu)  # a core dump of the running task: the image is brought up to date
    return copy_xstate_to_uabi(config, fpu.fpstate, config.user.max_size, config.user.max_features, fpu.pkru)


def xstateregs_set(fpu: Fpu, buf: bytes) -> Errno:
    """Write the task's state, all of it or nothing: EFAULT for any other size than ``user.max_size``.

    PKRU follows the buffer as XRSTOR would have it: a clear bit makes it 0 (bug B33).
    """
    config = fpu.host.config
    if not config.xsave:
        return Errno.ENODEV
    if len(buf) != config.user.max_size:
        return Errno.EFAULT
    _fpu_force_restore(fpu)
    result = copy_uabi_to_xstate(config, fpu.fpstate, buf)
    if isinstance(result, Errno):
        return result
    set_task_pkru(fpu, result.pkru or 0)
    return Errno.OK


def _fpu_force_restore(fpu: Fpu) -> None:
    """The image becomes the truth on every CPU, before it is known whether the buffer is any good."""
    _outside_guest(fpu)
    core_assert(fpu.cpu is None, f"{fpu.name} is written by ptrace while it runs")
    fpu.need_load = True
    fpu.last_cpu = -1


def _outside_guest(fpu: Fpu) -> None:
    """A traced thread has left KVM_RUN before it stops, and a worker is never traced."""
    core_assert(not fpu.is_worker and fpu.task_fpstate is None, f"{fpu.name} is traced outside user mode")
