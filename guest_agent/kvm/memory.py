"""The guest's physical memory: one anonymous mapping of this process, shown to KVM as slot 0 at address 0."""

from __future__ import annotations

import ctypes
import mmap
from types import TracebackType
from typing import Self


class GuestAddressError(Exception):
    """An address range that is not all guest memory; the message tells the range."""


class GuestMemory:
    """Bytes at guest physical addresses 0 to `size` - 1; the guest program maps them one to one.

    Close it only after the VM that uses it: guest memory that disappears under KVM triple-faults the guest.

    Attributes:
        size: bytes.
        host_address: where the mapping starts in this process, for KVM_SET_USER_MEMORY_REGION.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._mmap = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._mmap)
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self._mmap))

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes from `address` on.

        Raises:
            GuestAddressError: the range is not all guest memory.
        """
        return bytes(self._view[self._range(address, size)])

    def write(self, address: int, content: bytes) -> None:
        """Write `content` to `address`.

        Raises:
            GuestAddressError: the range is not all guest memory; nothing is written.
        """
        self._view[self._range(address, len(content))] = content

    def read_u64(self, address: int) -> int:
        """Return the little-endian 64-bit word at `address`."""
        return int.from_bytes(self.read(address, 8), "little")

    def write_u64(self, address: int, value: int) -> None:
        """Write a little-endian 64-bit word to `address`."""
        self.write(address, value.to_bytes(8, "little"))

    def close(self) -> None:
        """Give the memory back. Doing it twice is fine."""
        self._view.release()
        self._mmap.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _range(self, address: int, size: int) -> slice:
        if address < 0 or address + size > self.size:
            raise GuestAddressError(f"0x{address:x} + {size} is not guest memory (0 to 0x{self.size:x})")
        return slice(address, address + size)
