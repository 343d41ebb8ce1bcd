"""Chance as a function of a counter: the same (seed, point, entity, hit) draws the same number, always and anywhere.

Nothing is shared between draws, so taking one fault out of a plan moves no other. The mixing function is SplitMix64
(Steele, Lea, Flood 2014), which every language has in three lines.
"""

from __future__ import annotations

import hashlib
from typing import Final

_MASK: Final = (1 << 64) - 1
PPM: Final = 1_000_000


def splitmix64(value: int) -> int:
    """One step of SplitMix64 over an unsigned 64-bit ``value``."""
    value = (value + 0x9E37_79B9_7F4A_7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
    return value ^ (value >> 31)


def draw_ppm(seed: int, point: str, entity: str, hit: int) -> int:
    """Return a number in 0..999,999 for hit number ``hit`` (1 is the first) of ``point`` at ``entity``."""
    digest = hashlib.blake2b(f"{point}\0{entity}".encode(), digest_size=8).digest()
    mixed = splitmix64(splitmix64(seed & _MASK) ^ int.from_bytes(digest, "little"))
    return splitmix64(mixed ^ hit) % PPM
