"""Bytes: random ones, and those of a message flipped, cut, doubled, spliced, nested."""

from __future__ import annotations

from random import Random
from typing import Final

_SIZES: Final = (0, 1, 2, 7, 8, 31, 32, 33, 63, 64, 65, 512, 576, 2816, 4096, 8192, 11_008, 11_009)
_WORDS: Final = (
    0,
    1,
    2,
    3,
    16,
    18,
    19,
    32,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    1 << 63,
    (1 << 64) - 1,
)


#: What has grown beyond this is cut before it is changed again.
_MOST: Final = 300_000


def random_bytes(rng: Random) -> bytes:
    """Of a size that some format has, or about; rarely more than the host takes."""
    size = rng.choice(_SIZES) if rng.random() < 0.98 else 4 * 1024 * 1024 + rng.randrange(-64, 64)
    return rng.randbytes(size) if rng.random() < 0.5 else bytes([rng.randrange(256)]) * size


def with_a_word_changed(rng: Random, raw: bytes) -> bytes:
    """One little-endian word at an aligned place is another: the fields of packed records, and headers of images."""
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(0, len(raw), size)
    word = rng.choice(_WORDS) & ((1 << 8 * size) - 1)
    return raw[:at] + word.to_bytes(size, "little") + raw[at + size :]


def changed(rng: Random, raw: bytes, other: bytes) -> bytes:
    """The bytes of a message after something that a wire, or somebody, has done to them."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        raw = raw[:_MOST]
        raw = rng.choice((_flipped, _cut, _doubled, _inserted, _nested, _varint, with_a_word_changed))(
            rng, raw or b"\x0a"
        )
    if rng.random() < 0.15:
        raw = raw[: rng.randrange(len(raw) + 1)] + other[rng.randrange(len(other) + 1) :]
    return raw


def _flipped(rng: Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]


def _cut(rng: Random, raw: bytes) -> bytes:
    return raw[: rng.randrange(len(raw))] if rng.random() < 0.5 else raw[rng.randrange(len(raw)) :]


def _doubled(rng: Random, raw: bytes) -> bytes:
    begin = rng.randrange(len(raw))
    end = begin + 1 + rng.randrange(len(raw) - begin)
    return raw[:end] + raw[begin:end] * rng.choice((1, 2, 50)) + raw[end:]


def _inserted(rng: Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + rng.randbytes(rng.choice((1, 2, 8, 40))) + raw[at:]


def _nested(rng: Random, raw: bytes) -> bytes:
    """The message inside itself, or a group inside a group, deeper than parsers go (100)."""
    for _ in range(rng.choice((1, 3, 99, 101, 400))):
        if len(raw) > 60_000:
            break
        raw = bytes([rng.choice((0x0A, 0x12, 0x1A))]) + _length(len(raw)) + raw
    return raw if rng.random() < 0.7 else b"\x0b" * rng.choice((1, 99, 101, 5000)) + raw


def _varint(rng: Random, raw: bytes) -> bytes:
    """A varint too long, or a length beyond the end."""
    at = rng.randrange(len(raw) + 1)
    return (
        raw[:at] + rng.choice((b"\x80" * 10 + b"\x01", b"\xff" * 9 + b"\x7f", b"\x0a\xff\xff\xff\xff\x0f")) + raw[at:]
    )


def _length(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
