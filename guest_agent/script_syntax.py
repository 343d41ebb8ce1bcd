"""What a script may say: its steps as values, and the patterns of bytes it speaks of. `script_parser` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from guest_agent.event import GuestEvent, TileOp
from guest_agent.report import Mark

TILES = 8
ROWS = 16
ROW_BYTES = 64
TILE_BYTES = ROWS * ROW_BYTES

_MULTIPLIER = 6364136223846793005
_INCREMENT = 1442695040888963407


def pattern(seed: int, length: int) -> bytes:
    """Return `length` bytes of the real guest's generator, a linear congruential one (Knuth's MMIX constants)."""
    word, content = seed, bytearray()
    while len(content) < length:
        word = (word * _MULTIPLIER + _INCREMENT) & (1 << 64) - 1
        content += word.to_bytes(8, "little")
    return bytes(content[:length])


@dataclass(frozen=True, slots=True)
class TileConfig:
    """A tile configuration `TILESxROWSxBYTES`: so many tiles of so many rows of so many bytes, and no others."""

    tiles: int
    rows: int
    row_bytes: int

    def to_bytes(self) -> bytes:
        """Return the 64 bytes that LDTILECFG reads. Source: SDM vol. 2, LDTILECFG."""
        content = bytearray(64)
        content[0] = 1  # palette
        for tile in range(self.tiles):
            content[16 + 2 * tile : 18 + 2 * tile] = self.row_bytes.to_bytes(2, "little")
            content[48 + tile] = self.rows
        return bytes(content)

    def tile_bytes(self, content: bytes) -> bytes:
        """Return the whole register, 16 rows of 64 bytes, that holds `content` in its configured rows and columns."""
        rows = (content[n * self.row_bytes : (n + 1) * self.row_bytes] for n in range(self.rows))
        return b"".join(row.ljust(ROW_BYTES, b"\0") for row in rows).ljust(TILE_BYTES, b"\0")


# ---- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Execute:
    """Something happens on the vCPU. `value` or `data`, where given, is what must be read."""

    event: GuestEvent
    value: int | None = None
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """LDTILECFG of a configuration."""

    config: TileConfig


@dataclass(frozen=True, slots=True)
class LoadTile:
    """TILELOADD of a pattern, as much of it as the tile is configured for."""

    tile: int
    seed: int


@dataclass(frozen=True, slots=True)
class StoreTile:
    """TILESTORED, and the bytes must be those that were loaded last; TILEZERO and LDTILECFG load zeros."""

    tile: int


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """STTILECFG, and the bytes must be those of the last LDTILECFG."""


@dataclass(frozen=True, slots=True)
class Say:
    """The guest says a mark; without `value`, with what the last RDMSR has read."""

    mark: Mark
    value: int | None


@dataclass(frozen=True, slots=True)
class Goto:
    """Go on at a label."""

    label: str


@dataclass(frozen=True, slots=True)
class Retry:
    """Ends a handler: the instruction that faulted is executed again."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Ends a handler: go on behind the instruction that faulted."""


Instruction = Execute | LoadConfig | LoadTile | StoreTile | StoreConfig
Action = Instruction | Say | Goto | Retry | Skip

#: What `expect` may ask of the instruction before it: an exception, that it happened, that the container grew for it.
EXPECTATIONS: Mapping[str, int | None] = {"ud": 6, "nm": 7, "gp": 13, "done": None, "grew": None}
TILE_OPS: Mapping[str, TileOp] = {op.value.lower(): op for op in TileOp}


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        line: where it stands in its file, from 1.
        text: as it stands there.
        action: what it does.
        otherwise: the label where the script goes on if the instruction takes #GP; empty for none.
        expect: what the instruction must come to, a key of EXPECTATIONS; empty for anything that happens.
    """

    line: int
    text: str
    action: Action
    otherwise: str = ""
    expect: str = ""


@dataclass(frozen=True, slots=True)
class Script:
    """A script that was read.

    Attributes:
        name: of its file, for messages.
        steps: in order.
        labels: where each label points, an index into `steps`.
        handlers: the steps that an exception runs, by its vector.
    """

    name: str
    steps: tuple[Step, ...]
    labels: Mapping[str, int]
    handlers: Mapping[int, tuple[Step, ...]]
