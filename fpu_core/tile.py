"""AMX tile state: the rules of TILECFG and what each tile instruction needs.

Sources: Intel SDM vol. 2, LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TILERELEASE; checks as implemented in Bochs
(cpu/avx/amx.cc, amx.h).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

TILECFG_BYTES: Final = 64
TILECFG_START_ROW: Final = 1
TILE_BYTES: Final = 1024
TILE_ROW_BYTES: Final = 64
TILE_MAX_ROWS: Final = 16
TILE_COUNT: Final = 8
_MAX_PALETTE: Final = 1


class TileOp(enum.Enum):
    """The tile instructions the model executes."""

    LDTILECFG = "ldtilecfg"
    STTILECFG = "sttilecfg"
    TILERELEASE = "tilerelease"
    TILELOADD = "tileloadd"
    TILESTORED = "tilestored"
    TILEZERO = "tilezero"

    @property
    def needs_tile_data(self) -> bool:
        """Whether the instruction uses XTILE_DATA, and so takes #NM while XFD[18] is set.

        LDTILECFG and TILERELEASE initialise TILEDATA and STTILECFG does not use it: none of them takes #NM.
        Source: SDM vol. 1, 13.14.
        """
        return self in (TileOp.TILELOADD, TileOp.TILESTORED, TileOp.TILEZERO)


@dataclass(frozen=True, slots=True)
class TileShape:
    """Rows and bytes per row of one configured tile; both 0 where the tile is not configured."""

    rows: int
    colsb: int


@dataclass(frozen=True, slots=True)
class TileConfig:
    """A decoded TILECFG: palette, start row, and the shape of each of the eight tiles."""

    palette: int
    start_row: int
    shapes: tuple[TileShape, ...]


INIT_TILE_CONFIG: Final = TileConfig(0, 0, (TileShape(0, 0),) * TILE_COUNT)


def parse_tilecfg(raw: bytes) -> TileConfig | None:
    """Decode 64 bytes of TILECFG; None where LDTILECFG would take #GP.

    Layout: byte 0 palette, 1 start_row, 2-15 zero, 16-31 colsb[8] u16, 32-47 zero, 48-55 rows[8] u8, 56-63 zero.
    """
    palette, start_row = raw[0], raw[1]
    if palette == 0:
        return INIT_TILE_CONFIG
    if palette > _MAX_PALETTE or any(raw[2:16]) or any(raw[32:48]) or any(raw[56:64]):
        return None
    shapes = []
    for tile in range(TILE_COUNT):
        colsb = int.from_bytes(raw[16 + 2 * tile : 18 + 2 * tile], "little")
        rows = raw[48 + tile]
        if colsb > TILE_ROW_BYTES or rows > TILE_MAX_ROWS or (colsb == 0) != (rows == 0):
            return None
        shapes.append(TileShape(rows, colsb))
    return TileConfig(palette, start_row, tuple(shapes))


def load_tile(shape: TileShape, start_row: int, old: bytes, memory: bytes) -> bytes:
    """Return the 1,024 bytes of a tile after TILELOADD of ``memory`` (rows of 64 bytes): the rest is zeroed."""
    rows = bytearray(TILE_BYTES)
    rows[: start_row * TILE_ROW_BYTES] = old[: start_row * TILE_ROW_BYTES]
    for row in range(start_row, shape.rows):
        at = row * TILE_ROW_BYTES
        rows[at : at + shape.colsb] = memory[at : at + shape.colsb]
    return bytes(rows)
