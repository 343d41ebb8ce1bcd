"""A stretch of a process's memory as the kernel meets it: bytes, of which some pages may not be there at the moment.

An *absent* page faults until it is faulted in, as one that was swapped out does; what lies outside the stretch is not
mapped and never will be.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

PAGE_BYTES: Final = 4096


class UserMemory:
    """``size`` bytes at user address ``base``, all present and zero. Addresses and lengths in bytes."""

    __slots__ = ("absent", "base", "data")

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.data = bytearray(size)
        #: Page numbers (address // 4096) that fault.
        self.absent: set[int] = set()

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.base + len(self.data)

    def mapped(self, address: int, length: int) -> bool:
        """Whether all of it is this process's memory, present or not."""
        return self.base <= address and address + length <= self.end

    def readable_bytes(self, address: int, length: int) -> int:
        """How many bytes from ``address`` on can be used without a fault, at most ``length``."""
        if address < self.base:
            return 0
        missing = [page * PAGE_BYTES for page in pages_of(address, length) if page in self.absent]
        return max(0, min([length, self.end - address, *(start - address for start in missing)]))

    def fault_in(self, address: int, length: int) -> bool:
        """Bring the pages in; False, with as many brought in as there are, where something is not mapped."""
        self.absent.difference_update(pages_of(address, length))
        return self.mapped(address, length)

    def copy_from_user(self, address: int, length: int) -> bytes | None:
        """Read, faulting pages in; None where they are not mapped (EFAULT)."""
        if not self.fault_in(address, length):
            return None
        return bytes(self.data[address - self.base : address - self.base + length])

    def copy_to_user(self, address: int, data: bytes) -> bool:
        """Write, faulting pages in; False, with nothing written, where they are not mapped (EFAULT)."""
        if not self.fault_in(address, len(data)):
            return False
        self.data[address - self.base : address - self.base + len(data)] = data
        return True


def pages_of(address: int, length: int) -> Iterable[int]:
    """The page numbers that ``length`` bytes at ``address`` lie in."""
    return range(address // PAGE_BYTES, (address + max(length, 1) - 1) // PAGE_BYTES + 1)
