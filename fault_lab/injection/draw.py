"""Chance as a function of a counter: the same (seed, point, entity, hit) draws the same number, always and anywhere.

Nothing is shared between draws, so taking one fault out of a plan moves no other. The whole definition, in unsigned
64-bit arithmetic that wraps around:

    fnv1a(text)   h = 0xcbf29ce484222325; for each byte of the UTF-8 text: h = (h ^ byte) * 0x100000001b3
    splitmix(x)   x += 0x9e3779b97f4a7c15
                  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9
                  x = (x ^ x >> 27) * 0x94d049bb133111eb
                  x ^ x >> 31
    draw          splitmix(splitmix(splitmix(seed) ^ fnv1a(point, a zero byte, entity)) ^ hit)
    ppm           draw modulo 1,000,000

Both parts are a few lines in every language: ``tests/vectors`` has them in C++, Go, Java, JavaScript and Rust, and
``docs/vectors/draws.json`` has the numbers that every one of them must give.

Source: FNV-1a, RFC 9923; SplitMix64, Steele, Lea, Flood 2014 (doi 10.1145/2660193.2660195).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

_MASK: Final = (1 << 64) - 1
PPM: Final = 1_000_000


def splitmix64(value: int) -> int:
    """One step of SplitMix64 over an unsigned 64-bit ``value``."""
    value = (value + 0x9E37_79B9_7F4A_7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
    return value ^ (value >> 31)


def fnv1a64(data: bytes) -> int:
    """FNV-1a of ``data``, an unsigned 64-bit number."""
    value = 0xCBF2_9CE4_8422_2325
    for byte in data:
        value = ((value ^ byte) * 0x100_0000_01B3) & _MASK
    return value


def draw64(seed: int, point: str, entity: str, hit: int) -> int:
    """Return 64 bits for hit number ``hit`` (1 is the first) of ``point`` at ``entity``; of ``seed``, its low 64."""
    return splitmix64(_stream(seed & _MASK, point, entity) ^ (hit & _MASK))


@lru_cache(maxsize=1 << 14)
def _stream(seed: int, point: str, entity: str) -> int:
    """What all hits of one point at one entity have in common."""
    return splitmix64(splitmix64(seed) ^ _name(point, entity))


@lru_cache(maxsize=1 << 14)
def _name(point: str, entity: str) -> int:
    """The same few names come again with every seed."""
    return fnv1a64(f"{point}\0{entity}".encode())


def draw_ppm(seed: int, point: str, entity: str, hit: int) -> int:
    """Return a number in 0..999,999: a fault of so many parts per million fires where it is below them."""
    return draw64(seed, point, entity, hit) % PPM


def draw_between(seed: int, point: str, entity: str, hit: int, *, low: int, high: int) -> int:
    """Return a number in ``low``..``high``, both included; with ranges of up to 2**48 even to one part in 2**16."""
    if high < low:
        raise ValueError(f"expected low <= high, got {low} and {high}")
    return low + draw64(seed, point, entity, hit) % (high - low + 1)


def subseed(seed: int, name: str) -> int:
    """Return the seed of one part (a fault, a script, the network) of what ``seed`` is the universe of.

    Parts are told apart by name, so leaving one out changes no other's draws.
    """
    return draw64(seed, name, "", 0)
