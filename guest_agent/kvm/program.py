"""The guest program: the shipped image and its parameters."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from guest_agent.kvm.long_mode import BP_VECTOR, GP_VECTOR, NM_VECTOR, UD_VECTOR, VECTORS, write_tables
from guest_agent.kvm.memory import GuestMemory
from guest_agent.kvm.structs import KvmRegs

MEMORY_SIZE = 2 << 20
IMAGE_BASE = 0x10000

_IMAGE_END_MAX = 0x1F000  # the kernel stack grows down from 0x20000
_MAGIC = b"FPGUEST1"

_XFEATURE_MASK_AVX = 0b110
_XFEATURE_MASK_AVX512 = 0b1110_0110


class Port(enum.IntEnum):
    """Ports of the guest program; the head of guest.S explains them."""

    MARK = 0xE0
    XSETBV = 0xE1
    UD = 0xE2
    XSETBV_GP = 0xE3


class GrowthOrder(enum.Enum):
    """Which write makes the tiles usable, and so makes the fpstate grow."""

    XFD_ARMED_FIRST = "xfd-armed-first"  # XFD is set before XCR0 enables the tiles; the #NM handler's XFD = 0 grows
    XCR0_FIRST_WITH_XFD_0 = "xcr0-first-with-xfd-0"  # XFD stays 0; the XSETBV that enables the tiles grows


class _Flag(enum.IntFlag):
    XFD_FIRST = 1
    AVX = 2
    AVX512 = 4
    SPIN = 8


def shipped_image() -> bytes:
    """Return guest.bin, the machine code built from guest.S beside this file."""
    return Path(__file__).with_name("guest.bin").read_bytes()


@dataclass(frozen=True, slots=True)
class _Header:
    """The table at the start of the image; addresses are guest physical."""

    start: int
    ud_entry: int
    nm_entry: int
    gp_entry: int
    call_entry: int
    fault_stubs: int
    params: int
    kernel_stack: int
    stored: int
    stored_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestProgram:
    """What the guest does.

    Attributes:
        order: which write grows the fpstate.
        xcr0_first: XCR0 of the first XSETBV.
        xcr0: XCR0 of the second, the one with the tiles. 0x602e7 is what Sapphire Rapids offers without PT and PASID.
        seed: of the bytes that go through tiles and vectors, 64 bits.
        rounds: how often eight tiles are loaded, stored and compared, 1 to 2**32 - 1.
        vectors: also keep a pattern in YMM or ZMM registers, as far as `xcr0` and the processor have them.
        spin: end in an endless loop instead of HLT, for a guest that is to be stopped from outside.
        image: the machine code.

    Raises:
        ValueError: a number is out of its range, or the image is none of ours; the message names the field.
    """

    order: GrowthOrder = GrowthOrder.XFD_ARMED_FIRST
    xcr0_first: int = 0x7
    xcr0: int = 0x602E7
    seed: int = 1
    rounds: int = 1
    vectors: bool = True
    spin: bool = False
    image: bytes = field(default_factory=shipped_image, repr=False)

    def __post_init__(self) -> None:
        for name in ("xcr0_first", "xcr0", "seed"):
            _require_range(name, getattr(self, name), 0, (1 << 64) - 1)
        _require_range("rounds", self.rounds, 1, (1 << 32) - 1)
        if not self.image.startswith(_MAGIC):
            raise ValueError(f"image: expected it to start with {_MAGIC!r}, got {self.image[:8]!r}")
        if len(self.image) > _IMAGE_END_MAX - IMAGE_BASE:
            raise ValueError(f"image: expected at most {_IMAGE_END_MAX - IMAGE_BASE} bytes, got {len(self.image)}")

    @property
    def header(self) -> _Header:
        """The addresses that the image tells about itself."""
        return _Header(*struct.unpack_from("<10Q", self.image, len(_MAGIC)))

    def expected_tiles(self) -> bytes:
        """Compute, without the guest, the bytes of the eight tiles in the last round."""
        words = _random_words(self.seed)
        skipped = 2048 // 8 + (self.rounds - 1) * 1024  # the vectors' pattern and the earlier rounds come first
        for _ in range(skipped):
            next(words)
        return b"".join(next(words).to_bytes(8, "little") for _ in range(1024))

    def load(self, memory: GuestMemory, *, supported_xcr0: int) -> None:
        """Write the image, its parameters and the tables to guest memory. `supported_xcr0` is the real processor's."""
        memory.write(IMAGE_BASE, self.image)
        flags = self._flags(supported_xcr0)
        memory.write(self.header.params, struct.pack("<5Q", flags, self.seed, self.xcr0_first, self.xcr0, self.rounds))
        write_tables(memory, entries=self._entries(), kernel_stack=self.header.kernel_stack)

    def initial_regs(self) -> KvmRegs:
        """Return the registers of the first entry: ring 0, interrupts off, at the image's start."""
        return KvmRegs(rip=self.header.start, rsp=self.header.kernel_stack, rflags=2)

    def fault_stub(self, vector: int) -> int:
        """Return the entry that ends the program with a report of this exception."""
        return self.header.fault_stubs + 8 * vector

    def read_stored(self, memory: GuestMemory) -> bytes:
        """Return what the guest's TILESTORED wrote last, 8 tiles of 1,024 bytes."""
        return memory.read(self.header.stored, self.header.stored_size)

    def _entries(self) -> dict[int, int]:
        """Return the handler's address for every exception: the program's own entries, a fault stub for the rest."""
        stubs = {vector: self.fault_stub(vector) for vector in range(VECTORS)}
        own = {
            BP_VECTOR: self.header.call_entry,
            UD_VECTOR: self.header.ud_entry,
            NM_VECTOR: self.header.nm_entry,
            GP_VECTOR: self.header.gp_entry,
        }
        return stubs | own

    def _flags(self, supported_xcr0: int) -> _Flag:
        flags = _Flag.XFD_FIRST if self.order is GrowthOrder.XFD_ARMED_FIRST else _Flag(0)
        flags |= _Flag.SPIN if self.spin else _Flag(0)
        usable = self.xcr0 & supported_xcr0 if self.vectors else 0
        if usable & _XFEATURE_MASK_AVX512 == _XFEATURE_MASK_AVX512:
            return flags | _Flag.AVX512
        return flags | _Flag.AVX if usable & _XFEATURE_MASK_AVX == _XFEATURE_MASK_AVX else flags


def _require_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: expected 0x{low:x} to 0x{high:x}, got {value:#x}")


def _random_words(seed: int) -> Iterator[int]:
    """Yield the 64-bit words of the image's generator, a linear congruential one (Knuth's MMIX constants)."""
    word = seed
    while True:
        word = (word * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
        yield word
