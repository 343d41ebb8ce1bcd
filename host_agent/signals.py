"""Signals and debuggers: a task's registers on its stack and in somebody else's hands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fpu_core.altstack import sigaltstack
from fpu_core.errors import Errno
from fpu_core.permission import arch_prctl
from fpu_core.regset import ptrace_getregset, ptrace_setregset
from fpu_core.rt_signal import SignalFrame, deliver_signal, sigreturn
from fpu_core.sched import switch_to
from fpu_core.sigframe import sigframe_size
from fpu_core.usermem import PAGE_BYTES, UserMemory
from host_agent.errors import invalid
from host_agent.state import HostState, TaskRecord, VmRecord
from host_agent.task_commands import (
    ArchPrctl,
    DeliverSignal,
    EditFrame,
    PtraceGet,
    PtraceSet,
    SetAltstack,
    SigReturn,
    SwapOutFrame,
)
from host_agent.tasks import run_on_cpu, user_mode

#: Where a program's stack and its alternate one lie, and how much of its own it has left.
_STACK_BASE: Final = 0x7FFD_0000_0000
_ALTSTACK_BASE: Final = 0x7FFE_0000_0000
_STACK_BYTES: Final = 131_072
#: Below the stack pointer, for functions that call no other. Source: System V ABI, AMD64, 3.2.2.
_REDZONE_BYTES: Final = 128


@dataclass(frozen=True, slots=True)
class SignalReply:
    """What became of a signal, or of its handler's return: ``signal`` is SIGSEGV where it failed, else empty.

    ``frame_bytes`` are those of the register part.
    """

    signal: str
    frame_bytes: int = 0


# -- calls that return an errno ----------------------------------------------------------------------------------------


def prctl(state: HostState, command: ArchPrctl) -> tuple[Errno, int | None]:
    """The kernel's result, as a value: it is what was asked for."""
    vm, task = state.task(command.task)
    user_mode(vm, task)
    return arch_prctl(task.fpu, command.op, command.arg)


def set_altstack(state: HostState, command: SetAltstack) -> Errno:
    """EPERM while the task is on the stack it has, else what fits (ENOMEM)."""
    vm, task = state.task(command.task)
    user_mode(vm, task)
    if command.size_bytes is not None and command.size_bytes < 0:
        raise invalid("size_bytes", "0 or more bytes, or nothing for none", command.size_bytes)
    if _on_altstack(task):
        return Errno.EPERM
    return sigaltstack(task.fpu, command.size_bytes)


# -- signals -----------------------------------------------------------------------------------------------------------


def deliver(state: HostState, command: DeliverSignal) -> SignalReply:
    """Push a frame and start the handler; SIGSEGV, which a model of registers leaves at that, where it does not fit."""
    vm, task = state.task(command.task)
    user_mode(vm, task)
    run_on_cpu(vm, task)
    size = sigframe_size(task.fpu)
    frame = deliver_signal(task.fpu, *_stack(task, altstack=command.altstack))
    if frame is None:
        return SignalReply("SIGSEGV", size)
    task.frames.append(frame)
    return SignalReply("", size)


def _stack(task: TaskRecord, *, altstack: bool) -> tuple[UserMemory, int]:
    """The stack a handler gets, and where it begins. One that is on the alternate stack already stays there."""
    top = task.frames[-1] if task.frames else None
    if _on_altstack(task):
        assert top is not None
        return top.memory, top.sp
    if altstack and task.fpu.sas_ss_size:
        memory = UserMemory(_ALTSTACK_BASE, task.fpu.sas_ss_size)
        return memory, memory.end
    if top is not None:
        return top.memory, top.sp - _REDZONE_BYTES
    memory = UserMemory(_STACK_BASE, _STACK_BYTES)
    return memory, memory.end - _REDZONE_BYTES


def _on_altstack(task: TaskRecord) -> bool:
    return bool(task.frames) and task.frames[-1].memory.base == _ALTSTACK_BASE


def edit_frame(state: HostState, command: EditFrame) -> TaskRecord:
    """Write into the frame of the innermost handler."""
    vm, task = state.task(command.task)
    user_mode(vm, task)
    frame = _innermost(task)
    size = sigframe_size(task.fpu)
    if command.offset < 0 or not command.data or command.offset + len(command.data) > size:
        raise invalid("data", f"1..{size} bytes that end at or before byte {size} of the frame", len(command.data))
    frame.memory.copy_to_user(frame.address + command.offset, command.data)
    return task


def swap_out_frame(state: HostState, command: SwapOutFrame) -> TaskRecord:
    """Whoever touches the page next faults it in, with the bytes that it had."""
    vm, task = state.task(command.task)
    user_mode(vm, task)
    frame = _innermost(task)
    size = sigframe_size(task.fpu)
    if not 0 <= command.offset < size:
        raise invalid("offset", f"0..{size - 1}", command.offset)
    frame.memory.absent.add((frame.address + command.offset) // PAGE_BYTES)
    return task


def handler_returns(state: HostState, command: SigReturn) -> SignalReply:
    """sigreturn(2); SIGSEGV for a frame that cannot be restored, with the registers cleared."""
    vm, task = state.task(command.task)
    user_mode(vm, task)
    frame = _innermost(task)
    run_on_cpu(vm, task)
    restored = sigreturn(task.fpu, frame)
    task.frames.pop()
    return SignalReply("" if restored else "SIGSEGV", sigframe_size(task.fpu))


def _innermost(task: TaskRecord) -> SignalFrame:
    if not task.frames:
        raise invalid("task", "a task that handles a signal", task.id)
    return task.frames[-1]


# -- debuggers ---------------------------------------------------------------------------------------------------------


def ptrace_get(state: HostState, command: PtraceGet) -> bytes | Errno:
    """The task's registers in the user format, or the errno."""
    vm, task = state.task(command.task)
    if command.length < 0:
        raise invalid("length", "0 or more bytes", command.length)
    _stop(vm, task)
    return ptrace_getregset(task.fpu, command.length)


def ptrace_set(state: HostState, command: PtraceSet) -> Errno:
    """Write them."""
    vm, task = state.task(command.task)
    _stop(vm, task)
    return ptrace_setregset(task.fpu, command.data)


def _stop(vm: VmRecord, task: TaskRecord) -> None:
    """A traced task is stopped: it is on no CPU, and not in KVM_RUN, which a stop signal makes return."""
    user_mode(vm, task)
    if task.fpu.cpu is not None:
        switch_to(task.fpu.cpu, None)
