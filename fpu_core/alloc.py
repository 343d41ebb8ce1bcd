"""The allocator of containers: byte limits, an exact ledger, and a fault point at each allocation.

An allocation is charged to an account (a VM) and to every account above it (the host); it fails before anything is
charged. The ledger only counts: what it says is used must equal what live containers take, which the invariant checker
verifies after every step.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fpu_core.errors import Errno, FieldError, core_assert

#: Names of the fault points, each at a place where nothing has been changed yet and the caller handles ENOMEM. What is
#: known of each: ``fault_lab.injection.points``.
POINT_GUEST_ALLOC: Final = "fpstate.guest.alloc"
POINT_REALLOC_ALLOC: Final = "fpstate.realloc.alloc"
POINT_TASK_REALLOC_ALLOC: Final = "fpstate.task.realloc.alloc"
#: The same, where the permission to grow is looked up: EPERM.
POINT_REALLOC_PERM: Final = "fpstate.realloc.perm"
POINT_TASK_REALLOC_PERM: Final = "fpstate.task.realloc.perm"
FAULT_POINTS: Final = (POINT_GUEST_ALLOC, POINT_REALLOC_ALLOC, POINT_TASK_REALLOC_ALLOC)


class AllocFailureCause(enum.Enum):
    """Why an allocation failed."""

    #: The allocator had none: an injected fault, as vzalloc() returning NULL.
    NO_MEMORY = "no memory"
    #: A byte limit of the VM or the host stands in the way.
    QUOTA = "quota"


@dataclass(frozen=True, slots=True)
class AllocFailure:
    """An allocation that did not happen. Nothing was charged. ``account`` is the one that refused."""

    cause: AllocFailureCause
    size_bytes: int
    account: str


@dataclass(slots=True)
class Account:
    """A line of the ledger. ``limit_bytes`` is None for no limit of its own; the parents' limits hold as well."""

    name: str
    parent: Account | None = None
    limit_bytes: int | None = None
    used_bytes: int = 0
    peak_bytes: int = 0
    allocations: int = 0
    #: Of all allocations together, given back or not.
    allocated_bytes: int = 0
    failures: int = 0

    def set_limit(self, limit_bytes: int | None) -> None:
        """Set or lift the limit. A limit below what is used refuses new allocations and takes nothing back."""
        if limit_bytes is not None and limit_bytes < 0:
            raise FieldError("byte_limit", "0 or more bytes", limit_bytes)
        self.limit_bytes = limit_bytes

    def refuses(self, size_bytes: int) -> bool:
        """Whether ``size_bytes`` more would go over this account's own limit."""
        return self.limit_bytes is not None and self.used_bytes + size_bytes > self.limit_bytes


#: Asked at each allocation: (point, account name, size in bytes) -> the errno to fail with, Errno.OK to go on.
FaultHook = Callable[[str, str, int], Errno]


def no_faults(_point: str, _account: str, _size_bytes: int) -> Errno:
    """The hook of a host nobody breaks."""
    return Errno.OK


@dataclass(slots=True)
class Allocator:
    """vzalloc() and vfree() for containers."""

    should_fail: FaultHook = no_faults
    #: Of every account, those that are gone included.
    failures: int = 0
    host: Account = field(default_factory=lambda: Account("host"))

    def vzalloc(self, point: str, account: Account, image_bytes: int, header_bytes: int) -> bytearray | AllocFailure:
        """Take ``image_bytes`` of zeroed memory and charge them with the header; on failure charge nothing.

        Order: the fault point first, then the limits from the VM up to the host.
        """
        size_bytes = image_bytes + header_bytes
        if self.should_fail(point, account.name, size_bytes) is not Errno.OK:
            self._failed(account)
            return AllocFailure(AllocFailureCause.NO_MEMORY, size_bytes, account.name)
        line: Account | None = account
        while line is not None:
            if line.refuses(size_bytes):
                self._failed(account)
                return AllocFailure(AllocFailureCause.QUOTA, size_bytes, line.name)
            line = line.parent
        regs = bytearray(image_bytes)
        self._charge(account, size_bytes)
        return regs

    def vfree(self, account: Account, size_bytes: int) -> None:
        """Give ``size_bytes`` (image and header) back to the account they were charged to."""
        line: Account | None = account
        while line is not None:
            core_assert(line.used_bytes >= size_bytes, f"account {line.name} frees more than it took")
            line.used_bytes -= size_bytes
            line = line.parent

    def shrink(self, account: Account, old_bytes: int, new_bytes: int) -> None:
        """Give back what lies behind ``new_bytes`` of ``old_bytes`` that were taken: nothing can fail here."""
        core_assert(0 < new_bytes <= old_bytes, f"account {account.name} shrinks {old_bytes} bytes to {new_bytes}")
        self.vfree(account, old_bytes - new_bytes)

    def _failed(self, account: Account) -> None:
        account.failures += 1
        self.failures += 1

    @staticmethod
    def _charge(account: Account, size_bytes: int) -> None:
        line: Account | None = account
        while line is not None:
            line.used_bytes += size_bytes
            line.peak_bytes = max(line.peak_bytes, line.used_bytes)
            line.allocations += 1
            line.allocated_bytes += size_bytes
            line = line.parent
