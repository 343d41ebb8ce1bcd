"""What the registers of a scripted guest should hold: the events of its instructions, and what must be read back."""

from __future__ import annotations

from typing import assert_never

from guest_agent.event import GuestEvent, Rdmsr, RegisterRead, Tile, TileOp
from guest_agent.outcome import Done
from guest_agent.script_syntax import (
    TILE_BYTES,
    TILES,
    Execute,
    Instruction,
    LoadConfig,
    LoadTile,
    StoreConfig,
    StoreTile,
    TileConfig,
    pattern,
)


class ScriptRegisters:
    """The tiles and their configuration as the script has loaded them; `read` is what RDMSR has read last."""

    def __init__(self) -> None:
        self.read = 0
        self._config: TileConfig | None = None
        self._tiles = [bytes(TILE_BYTES)] * TILES

    def event(self, instruction: Instruction) -> GuestEvent:
        """Return what an instruction is on a vCPU."""
        match instruction:
            case Execute(event=event):
                return event
            case LoadConfig(config=config):
                return Tile(TileOp.LDTILECFG, memory=config.to_bytes())
            case LoadTile(tile=tile, seed=seed):
                return Tile(TileOp.TILELOADD, tile, self._pattern(tile, seed))
            case StoreTile(tile=tile):
                return Tile(TileOp.TILESTORED, tile)
            case StoreConfig():
                return Tile(TileOp.STTILECFG)
            case _:
                assert_never(instruction)

    def check(self, instruction: Instruction, done: Done) -> str:
        """Note what an instruction that happened has loaded; return how what it read differs, empty if it does not."""
        match instruction:
            case LoadConfig(config=config):
                self._config, self._tiles = config, [bytes(TILE_BYTES)] * TILES
            case LoadTile(tile=tile, seed=seed):
                self._tiles[tile] = self._pattern(tile, seed)
            case StoreTile(tile=tile):
                return _difference(f"tile {tile}", self._tiles[tile], done.data)
            case StoreConfig():
                expected = self._config.to_bytes() if self._config else bytes(64)
                return _difference("the tile configuration", expected, done.data)
            case Execute(event=Tile(op=TileOp.TILERELEASE)):
                self._config, self._tiles = None, [bytes(TILE_BYTES)] * TILES
            case Execute(event=Tile(op=TileOp.TILEZERO, tile=tile)):
                self._tiles[tile] = bytes(TILE_BYTES)
            case Execute(event=Rdmsr(), value=value):
                self.read = done.value or 0
                return "" if value in (None, done.value) else f"expected {value:x}, got {self.read:x}"
            case Execute(event=RegisterRead(), data=content) if content is not None:
                return _difference("the register", content, done.data)
            case _:
                pass
        return ""

    def _pattern(self, tile: int, seed: int) -> bytes:
        """Return a pattern in the form of a tile; the whole register's where it is not configured, which faults."""
        config = self._config
        if config is None or tile >= config.tiles:
            return pattern(seed, TILE_BYTES)
        return config.tile_bytes(pattern(seed, config.rows * config.row_bytes))


def _difference(what: str, expected: bytes, got: bytes) -> str:
    if expected == got:
        return ""
    same = (a == b for a, b in zip(expected, got, strict=False))
    first = next((at for at, equal in enumerate(same) if not equal), min(len(expected), len(got)))
    there, here = (content[first : first + 8].hex() or "nothing" for content in (expected, got))
    return f"{what}: byte {first} of {len(expected)}: expected {there}, got {here}"
