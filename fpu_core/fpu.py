"""Fpu, what every task has, and FpuGuest, what every vCPU has; and FpuHost, what they share.

Both hold a reference to a container and little else: ``Fpu.fpstate`` is the container the registers belong to *now*,
``Fpu.task_fpstate`` the task's own one while a guest is swapped in.

Source: arch/x86/include/asm/fpu/types.h, struct fpu, struct fpu_guest and struct fpu_state_perm.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fpu_core.alloc import Account, Allocator
from fpu_core.config import FpuConfig
from fpu_core.errors import Errno
from fpu_core.fpstate import Fpstate, task_fpstate
from fpu_core.trace import CoreTracer

if TYPE_CHECKING:
    from fpu_core.cpu import Cpu

#: Bit 63 of a guest permission: a first vCPU exists, so no more may be granted (FPU_GUEST_PERM_LOCKED).
FPU_GUEST_PERM_LOCKED: Final = 1 << 63
#: sizeof(struct kvm_xsave): the least a KVM_GET_XSAVE buffer has. Source: include/uapi/asm/kvm.h.
KVM_XSAVE_BYTES: Final = 4096


@dataclass(slots=True)
class CoreCounts:
    """How often things happened since the start. ``growths`` is by outcome: grown, no_memory, quota, no_permission."""

    swaps: int = 0
    shrinks: int = 0
    growths: dict[str, int] = field(default_factory=dict)

    def grew(self, outcome: str) -> None:
        """A container was to grow, and this came of it."""
        self.growths[outcome] = self.growths.get(outcome, 0) + 1


#: Asked where a container is to grow, before the permission is looked up: (point, xfeatures) -> the errno to fail with.
GrowthHook = Callable[[str, int], Errno]


def grows(_point: str, _xfeatures: int) -> Errno:
    """The hook of a host nobody breaks."""
    return Errno.OK


@dataclass(slots=True)
class FpuHost:
    """What the kernel has once: configuration, allocator, observer, and where the kernel may be preempted."""

    config: FpuConfig
    allocator: Allocator = field(default_factory=Allocator)
    tracer: CoreTracer | None = None
    #: Called where preemption is enabled in the middle of an operation; tests preempt the task here.
    preemptible: Callable[[str], None] | None = None
    #: A fault point: where it fails, the permission is missing for this once.
    may_grow: GrowthHook = grows
    #: init_fpstate: the image that registers get their init state from. Default features only (bug B9).
    init_fpstate: Fpstate = field(init=False)
    #: The kernel's clock, in ticks of a millisecond; whoever drives the host sets it.
    jiffies: int = 0
    #: The boot option of that name: alternate signal stacks must fit what is permitted even without dynamic features.
    strict_sigaltstack_size: bool = False
    #: For metrics: nothing depends on it, and no digest holds it.
    counts: CoreCounts = field(default_factory=CoreCounts)

    def __post_init__(self) -> None:
        self.init_fpstate = task_fpstate(self.config)

    def preempt_point(self, name: str) -> None:
        """A place where the scheduler could take the CPU away."""
        if self.preemptible is not None:
            self.preemptible(name)


@dataclass(slots=True)
class StatePerm:
    """One permission record: what a process may use, and the image sizes (bytes) that follow from it."""

    state_perm: int
    state_size: int
    user_state_size: int


class TaskKind(enum.Enum):
    """What kind of task it is, by its flag. Source: include/linux/sched.h."""

    #: Goes to user mode.
    USER = "user task"
    #: PF_KTHREAD.
    KTHREAD = "kernel thread"
    #: PF_USER_WORKER: io_uring's and vhost's workers, threads of a process that never leave the kernel.
    USER_WORKER = "user worker"


class Fpu:
    """The FPU part of one task (thread). Group-wide permissions live in the group leader's."""

    __slots__ = (
        "account",
        "avx512_timestamp",
        "cpu",
        "embedded",
        "fpstate",
        "guest_perm",
        "host",
        "kind",
        "last_cpu",
        "leader",
        "name",
        "need_load",
        "perm",
        "pkru",
        "sas_ss_size",
        "task_fpstate",
        "threads",
    )

    def __init__(
        self,
        host: FpuHost,
        name: str,
        *,
        account: Account,
        leader: Fpu | None = None,
        kind: TaskKind = TaskKind.USER,
    ) -> None:
        config = host.config
        self.host = host
        self.name = name
        #: Where the memory of grown containers is charged: the process, which is the VM.
        self.account = account
        self.leader = leader if leader is not None else self
        #: The threads of the process, kept by the leader and shared with the others; a dict for its order.
        self.threads: dict[Fpu, None] = leader.threads if leader is not None else {}
        self.threads[self] = None
        #: The container embedded in the task; it is never freed on its own.
        self.embedded = task_fpstate(config)
        #: The active container: the registers' home.
        self.fpstate: Fpstate = self.embedded
        #: The task's own container while a guest's is active; None otherwise (__task_fpstate).
        self.task_fpstate: Fpstate | None = None
        self.perm = StatePerm(config.kernel.default_features, config.kernel.default_size, config.user.default_size)
        self.guest_perm = StatePerm(config.guest_default_features, config.guest_default_size, config.user.default_size)
        #: The CPU whose registers last held this task's state, -1 for none.
        self.last_cpu = -1
        #: TIF_NEED_FPU_LOAD: the memory image is the truth, not the registers.
        self.need_load = False
        #: The CPU the task runs on, None while it is scheduled out.
        self.cpu: Cpu | None = None
        self.kind = kind
        #: PKRU is switched with the task, beside the FPU code: no swap and no restore of an image touches it. While the
        #: task runs in its own code the register has the same value; in the guest, the guest's.
        self.pkru = config.init_pkru
        #: When a save last found AVX-512 in use, in jiffies; None for never.
        self.avx512_timestamp: int | None = None
        #: Bytes of the alternate signal stack, 0 for none.
        self.sas_ss_size = 0

    @property
    def is_worker(self) -> bool:
        """Whether the task never goes to user mode: its registers are never saved and never restored."""
        return self.kind is not TaskKind.USER

    def __repr__(self) -> str:
        where = f"cpu{self.cpu.nr}" if self.cpu is not None else "off"
        return f"<Fpu {self.name} {where} need_load={self.need_load} fpstate={self.fpstate}>"


@dataclass(frozen=True, slots=True)
class ReallocRequest:
    """What the intercept leaves for the swap: the features the container must gain, and the XFD it will then have.

    ``xfd`` is exactly the value the pending write asks for. This object is the mail's ``need_realloc``.
    """

    xfeatures: int
    xfd: int


@dataclass(slots=True, eq=False)
class KvmBuffers:
    """What a vCPU had until 5.15, beside the image of whichever thread runs it. See ``fpu_core.three_buffer``."""

    user_fpu: Fpstate
    guest_fpu: Fpstate


class _GuestSwapFields:
    """What every swap looks at; first, as in ``Fpstate``."""

    __slots__ = ("fpstate", "realloc_request")


class FpuGuest(_GuestSwapFields):
    """The guest pseudo FPU of one vCPU (struct fpu_guest)."""

    __slots__ = ("buffers", "perm", "uabi_size", "xfd_err", "xfeatures")

    def __init__(self) -> None:
        #: The container; None before alloc and after free.
        self.fpstate: Fpstate | None = None
        #: Features enabled for the vCPU: those of its container.
        self.xfeatures = 0
        #: Guest XFD_ERR, loaded into the register around the guest window only.
        self.xfd_err = 0
        #: Bytes that KVM_GET_XSAVE2 and KVM_SET_XSAVE move.
        self.uabi_size = 0
        #: Pending growth: set by the intercept, honoured and cleared by the next swap-out. None nearly always.
        self.realloc_request: ReallocRequest | None = None
        #: Under rules before 2025 only: the copy of the permission taken at alloc.
        self.perm = 0
        #: Under ``three_buffer`` only: the two buffers of its own.
        self.buffers: KvmBuffers | None = None

    def __repr__(self) -> str:
        return f"<FpuGuest {self.fpstate} xfd_err={self.xfd_err:#x} request={self.realloc_request}>"


def fpstate_set_realloc_request(guest: FpuGuest, xfeatures: int, xfd: int) -> None:
    """Ask the next swap-out to grow the container by ``xfeatures``; requests accumulate, the last XFD counts.

    The one narrow function between KVM's problem (what must be intercepted) and the FPU core's (how storage grows).
    Nothing is allocated and nothing is committed here. Source: the founding mail.
    """
    pending = guest.realloc_request
    if pending is not None:
        xfeatures |= pending.xfeatures
    guest.realloc_request = ReallocRequest(xfeatures, xfd)
