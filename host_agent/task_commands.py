"""Commands of the life of registers around the swap: signal stacks, signals, debuggers, workers, interrupts, CPUs.

Frozen values as in ``commands``, whose ``Command`` they are part of.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchPrctl:
    """arch_prctl(2) by a thread of ``task``'s process: an option and an argument as they reach the kernel."""

    task: str
    op: int
    arg: int
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAltstack:
    """sigaltstack(2) by ``task``: a stack of ``size_bytes``, None for none."""

    task: str
    size_bytes: int | None
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateWorker:
    """A task that never goes to user mode: a kernel thread, or a user worker of the VM's process."""

    vm: str
    task_id: str
    user_worker: bool
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnableShadowStack:
    """arch_prctl(ARCH_SHSTK_ENABLE) by ``task``; ``ssp`` is where its shadow stack is."""

    task: str
    ssp: int
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupt:
    """An interrupt on the CPU where ``task`` runs, whose code wants the FPU.

    ``context`` is softirq or hardirq; ``hits`` is what it came in upon: the task itself, a kernel_fpu section, or code
    under fpregs_lock().
    """

    task: str
    context: str
    hits: str = "task"
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverSignal:
    """A signal with a handler for ``task``: a frame on its stack, or on its alternate one."""

    task: str
    altstack: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditFrame:
    """The handler writes ``data`` at ``offset`` of the register part of its frame."""

    task: str
    offset: int
    data: bytes
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapOutFrame:
    """Memory is short: the page with byte ``offset`` of the register part of the frame is swapped out."""

    task: str
    offset: int
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigReturn:
    """The handler of ``task`` returns."""

    task: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PtraceGet:
    """PTRACE_GETREGSET of NT_X86_XSTATE with a buffer of ``length`` bytes; the task stops for it."""

    task: str
    length: int
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PtraceSet:
    """PTRACE_SETREGSET of NT_X86_XSTATE; the task stops for it."""

    task: str
    data: bytes
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineCpu:
    """Take a CPU of the kind that ``vm`` runs on down."""

    vm: str
    cpu: int
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineCpu:
    """Bring it back up."""

    vm: str
    cpu: int
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleCpu:
    """The CPU has nothing to run and goes into a deep idle state."""

    vm: str
    cpu: int
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspendHost:
    """The machine with the CPUs that ``vm`` runs on sleeps, and wakes up again."""

    vm: str
    request_id: str = ""


TaskCommand = (
    ArchPrctl
    | SetAltstack
    | CreateWorker
    | EnableShadowStack
    | Interrupt
    | DeliverSignal
    | EditFrame
    | SwapOutFrame
    | SigReturn
    | PtraceGet
    | PtraceSet
    | OfflineCpu
    | OnlineCpu
    | IdleCpu
    | SuspendHost
)
