"""Bytes to load: recognisable ones, and tile configurations."""

from __future__ import annotations

import random

from fpu_core.tile import TILE_COUNT, TILECFG_BYTES


def random_bytes(seed: int, length: int) -> bytes:
    """``length`` bytes that depend on ``seed`` alone, none of them zero, so that init state never looks like them."""
    return bytes(random.Random(seed).choices(range(1, 256), k=length))


def tilecfg(rows: int = 16, colsb: int = 64, *, palette: int = 1, start_row: int = 0) -> bytes:
    """A TILECFG in which all eight tiles have this shape."""
    raw = bytearray(TILECFG_BYTES)
    raw[0], raw[1] = palette, start_row
    for tile in range(TILE_COUNT):
        raw[16 + 2 * tile] = colsb
        raw[48 + tile] = rows
    return bytes(raw)
