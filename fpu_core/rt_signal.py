"""A signal from delivery to sigreturn, as far as registers are concerned: which stack, which PKRU, which failure.

Sources: arch/x86/kernel/signal.c, get_sigframe(), handle_signal() and sig_prepare_pkru(); signal_64.c,
rt_sigreturn(); include/linux/sched/signal.h, __on_sig_stack().
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fpu_core.context import running_cpu
from fpu_core.errors import core_assert
from fpu_core.fpu import Fpu
from fpu_core.sched import read_pkru, set_task_pkru
from fpu_core.sigframe import alloc_mathframe, copy_fpstate_to_sigframe, fpu_clear_user_states, fpu_restore_sig
from fpu_core.usermem import UserMemory

#: sizeof(struct rt_sigframe), which lies below the register part: return address, ucontext, siginfo.
_RT_SIGFRAME_BYTES: Final = 440


@dataclass(slots=True)
class SignalFrame:
    """A frame on a stack: where its register part is, and the stack pointer that its handler starts with."""

    memory: UserMemory
    address: int
    sp: int


def deliver_signal(fpu: Fpu, memory: UserMemory, sp: int) -> SignalFrame | None:
    """Push a frame below ``sp`` and start the handler; None, with nothing changed, where there is no room: SIGSEGV.

    PKRU is opened first, since the stack may be protected by a key that the program has closed; the handler starts with
    the default one.
    """
    core_assert(not fpu.is_worker and fpu.task_fpstate is None, f"{fpu.name} takes a signal outside user mode")
    address = alloc_mathframe(fpu, sp)
    handler_sp = ((address - _RT_SIGFRAME_BYTES) & -16) - 8
    if handler_sp < memory.base:
        return None
    pkru = read_pkru(running_cpu(fpu))
    set_task_pkru(fpu, 0)
    if not copy_fpstate_to_sigframe(fpu, memory, address, pkru):
        set_task_pkru(fpu, pkru)
        return None
    fpu.host.preempt_point("signal: frame written, registers not yet cleared")
    fpu_clear_user_states(fpu)
    return SignalFrame(memory, address, handler_sp)


def sigreturn(fpu: Fpu, frame: SignalFrame) -> bool:
    """rt_sigreturn(2) from ``frame``. False: the frame was bad, the registers are cleared, and SIGSEGV is forced."""
    core_assert(not fpu.is_worker and fpu.task_fpstate is None, f"{fpu.name} returns from a signal outside user mode")
    return fpu_restore_sig(fpu, frame.memory, frame.address)
