"""Which bytes of guest memory a tile instruction touches.

A processor takes the rows and columns from its tile configuration. The VMM is no judge of that configuration, but it
has to know how far a row reaches, so it notes the shapes of the last configuration that the trap handler accepted.
"""

from __future__ import annotations

from typing import NamedTuple

from guest_agent.kvm.decode import TileInstruction
from guest_agent.kvm.memory import GuestMemory

ROWS = 16
ROW_BYTES = 64
TILE_BYTES = ROWS * ROW_BYTES
TILES = 8
CONFIG_BYTES = 64


class TileShape(NamedTuple):
    """Rows of a tile and bytes per row; both 0 for a tile that is not configured."""

    rows: int
    row_bytes: int


UNCONFIGURED = (TileShape(0, 0),) * TILES


def read_shapes(config: bytes) -> tuple[TileShape, ...]:
    """Read the eight shapes out of a tile configuration of 64 bytes that was found valid.

    Source: SDM vol. 2, LDTILECFG: byte 0 palette; from 16 on colsb, 2 bytes each; from 48 on rows, 1 byte each.
    """
    if config[0] == 0:
        return UNCONFIGURED
    columns = (int.from_bytes(config[16 + 2 * n : 18 + 2 * n], "little") for n in range(TILES))
    return tuple(
        TileShape(min(rows, ROWS), min(size, ROW_BYTES)) for rows, size in zip(config[48:56], columns, strict=True)
    )


def gather_tile(memory: GuestMemory, instruction: TileInstruction, shape: TileShape) -> bytes:
    """Read a TILELOADD's rows: the new content of the whole tile register, zero beyond the shape.

    Raises:
        GuestAddressError: a row is not all guest memory.
    """
    rows = (memory.read(_row_address(instruction, n), shape.row_bytes) for n in range(shape.rows))
    return b"".join(row.ljust(ROW_BYTES, b"\0") for row in rows).ljust(TILE_BYTES, b"\0")


def scatter_tile(memory: GuestMemory, instruction: TileInstruction, shape: TileShape, content: bytes) -> None:
    """Write a TILESTORED's rows from the `content` of the whole tile register.

    Raises:
        GuestAddressError: a row is not all guest memory; the rows before it are written, as on a processor.
    """
    for n in range(shape.rows):
        row = content[n * ROW_BYTES : n * ROW_BYTES + shape.row_bytes]
        memory.write(_row_address(instruction, n), row)


def _row_address(instruction: TileInstruction, row: int) -> int:
    assert instruction.address is not None
    return instruction.address + row * instruction.stride & (1 << 64) - 1
