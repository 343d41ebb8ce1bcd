"""Random values for live-kvm: half of them right, the others wrong in one place."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache

from fpu_core.config import FpuConfig
from fpu_core.layout import MXCSR_OFFSET, XSTATE_BV_OFFSET
from fpu_core.xfeature import for_each_set_bit
from host_agent.kvm.cpuid import CpuidTable
from host_agent.kvm.xcr0 import xcr0_error


@dataclass(frozen=True, slots=True)
class Values:
    """Draws from ``rng`` for the processor of ``config``."""

    rng: random.Random
    config: FpuConfig

    def xcr0(self, supported: int) -> int:
        """Half of them legal where ``supported`` is, the others one or two bits away, or anything."""
        rng = self.rng
        value = rng.choice(legal_xcr0(supported))
        match rng.randrange(4):
            case 0:
                value ^= 1 << rng.randrange(20)
            case 1:
                value ^= 1 << rng.randrange(20) | 1 << rng.randrange(64)
            case _:
                pass
        return value if rng.randrange(8) else rng.getrandbits(64)

    def bv(self) -> int:
        """An XSTATE_BV of components the host has; one in ten with a bit too many."""
        bv = self.rng.getrandbits(64) & self.config.user.max_features
        return bv | 1 << self.rng.randrange(64) if self.rng.randrange(10) == 0 else bv

    def mxcsr(self) -> int:
        """A legal MXCSR, the init value in half of all cases."""
        return self.rng.choice([0x1F80, self.rng.getrandbits(32)]) & self.config.mxcsr_mask

    def buffer(self, bv: int, size: int) -> bytearray:
        """A UABI buffer of ``size`` bytes: random in components and gaps alike, header and MXCSR as they should be."""
        raw = bytearray(self.rng.randbytes(size))
        raw[MXCSR_OFFSET : MXCSR_OFFSET + 4] = self.mxcsr().to_bytes(4, "little")
        raw[XSTATE_BV_OFFSET : XSTATE_BV_OFFSET + 64] = bv.to_bytes(8, "little") + bytes(56)
        return raw

    def damage(self, raw: bytearray) -> str:
        """Spoil one thing in two buffers of three; returns what."""
        rng = self.rng
        match rng.randrange(6):
            case 0:
                raw[XSTATE_BV_OFFSET + 8 : XSTATE_BV_OFFSET + 16] = (1 << rng.randrange(64)).to_bytes(8, "little")
                return "with an XCOMP_BV"
            case 1:
                raw[XSTATE_BV_OFFSET + 16 + rng.randrange(48)] = 1 << rng.randrange(8)
                return "with a reserved header byte"
            case 2:
                raw[MXCSR_OFFSET + rng.randrange(4)] ^= 1 << rng.randrange(8)
                return "with one bit of MXCSR turned"
            case 3:
                raw[XSTATE_BV_OFFSET + rng.randrange(8)] ^= 1 << rng.randrange(8)
                return "with one bit of XSTATE_BV turned"
            case _:
                return ""

    def changed(self, table: CpuidTable) -> CpuidTable:
        """``table`` with one bit turned, in a leaf that says nothing about registers. An empty one stays empty."""
        found = [nr for nr, entry in enumerate(table) if entry.function == 0x1]
        if not found:
            return table
        at = self.rng.choice(found)
        entry = replace(table[at], ebx=table[at].ebx ^ 1 << self.rng.randrange(8))
        return (*table[:at], entry, *table[at + 1 :])


@cache
def legal_xcr0(supported: int) -> list[int]:
    """Every XCR0 that is legal where ``supported`` is; 1 at least."""
    bits = list(for_each_set_bit(supported))
    masks = [sum(1 << nr for at, nr in enumerate(bits) if pick >> at & 1) for pick in range(1 << len(bits))]
    return [mask for mask in masks if xcr0_error(0, mask, supported) is None] or [1]


def bv_of(buf: bytes | bytearray) -> int:
    """XSTATE_BV of a buffer."""
    return int.from_bytes(buf[XSTATE_BV_OFFSET : XSTATE_BV_OFFSET + 8], "little")
