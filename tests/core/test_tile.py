"""AMX: the checks of TILECFG, and what each tile instruction does and raises.

Reference: Intel SDM vol. 2, LDTILECFG to TILEZERO, and vol. 1, 13.14 for XFD.
"""

from __future__ import annotations

import pytest

from fpu_core.cpu import Cpu, Vector
from fpu_core.tile import TileOp, TileShape, load_tile, parse_tilecfg
from fpu_core.xfeature import (
    XFEATURE_MASK_XTILE,
    XFEATURE_MASK_XTILE_CFG,
    XFEATURE_MASK_XTILE_DATA,
    XFEATURE_XTILE_CFG,
)
from tests.core.rig import Rig
from tests.core.samples import random_bytes, tilecfg

_XCR0 = 0x602E7


def _cpu() -> Cpu:
    cpu = Rig.create().cpus[1]
    cpu.xfd_set_state(0)
    return cpu


def _with(raw: bytes, offset: int, value: int) -> bytes:
    changed = bytearray(raw)
    changed[offset] = value
    return bytes(changed)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(tilecfg(), id="palette 1, eight tiles of 16 rows of 64 bytes"),
        pytest.param(tilecfg(1, 1), id="the smallest tile"),
        pytest.param(tilecfg(0, 0), id="palette 1 with no tile configured"),
        pytest.param(tilecfg(start_row=255), id="start_row is not checked by LDTILECFG"),
        pytest.param(bytes(64), id="palette 0"),
        pytest.param(bytes(63) + b"\1", id="palette 0: nothing else is looked at"),
    ],
)
def test_good_tilecfg(raw: bytes) -> None:
    """LDTILECFG accepts these."""
    assert parse_tilecfg(raw) is not None


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(tilecfg(palette=2), id="palette 2 does not exist"),
        pytest.param(_with(tilecfg(), 2, 1), id="byte 2 is reserved"),
        pytest.param(_with(tilecfg(), 15, 1), id="byte 15 is reserved"),
        pytest.param(_with(tilecfg(), 32, 1), id="byte 32 belongs to tile 8, which palette 1 has not"),
        pytest.param(_with(tilecfg(), 47, 1), id="byte 47 is reserved"),
        pytest.param(_with(tilecfg(), 56, 1), id="byte 56 is reserved"),
        pytest.param(_with(tilecfg(), 63, 1), id="byte 63 is reserved"),
        pytest.param(tilecfg(17, 64), id="17 rows"),
        pytest.param(tilecfg(16, 65), id="65 bytes a row"),
        pytest.param(tilecfg(0, 64), id="bytes but no rows"),
        pytest.param(tilecfg(16, 0), id="rows but no bytes"),
        pytest.param(_with(tilecfg(), 31, 1), id="the upper byte of tile 7's colsb counts"),
    ],
)
def test_bad_tilecfg_is_gp_and_changes_nothing(raw: bytes) -> None:
    """LDTILECFG of these is #GP, and the tiles stay as they were."""
    cpu = _cpu()
    assert cpu.tile_instruction(TileOp.LDTILECFG, 0, tilecfg(), _XCR0) == b""
    assert cpu.tile_instruction(TileOp.TILELOADD, 3, random_bytes(1, 1024), _XCR0) == b""
    before = cpu.observable()
    assert cpu.tile_instruction(TileOp.LDTILECFG, 0, raw, _XCR0) is Vector.GP
    assert cpu.observable() == before


def test_load_store_zero_release() -> None:
    """What TILELOADD loads TILESTORED stores; TILEZERO clears one tile; TILERELEASE initialises both components."""
    cpu = _cpu()
    tile0, tile7 = random_bytes(1, 1024), random_bytes(2, 1024)
    cpu.tile_instruction(TileOp.LDTILECFG, 0, tilecfg(), _XCR0)
    cpu.tile_instruction(TileOp.TILELOADD, 0, tile0, _XCR0)
    cpu.tile_instruction(TileOp.TILELOADD, 7, tile7, _XCR0)
    assert cpu.tile_instruction(TileOp.TILESTORED, 0, b"", _XCR0) == tile0
    cpu.tile_instruction(TileOp.TILEZERO, 0, b"", _XCR0)
    assert cpu.tile_instruction(TileOp.TILESTORED, 0, b"", _XCR0) == bytes(1024)
    assert cpu.tile_instruction(TileOp.TILESTORED, 7, b"", _XCR0) == tile7
    cpu.tile_instruction(TileOp.TILERELEASE, 0, b"", _XCR0)
    assert not cpu.xinuse & XFEATURE_MASK_XTILE
    assert cpu.tile_instruction(TileOp.STTILECFG, 0, b"", _XCR0) == bytes(64)


def test_tile_beyond_its_shape_is_zero() -> None:
    """TILELOADD zeroes what lies beyond the configured rows and columns, and keeps the rows before start_row."""
    memory, old = random_bytes(1, 1024), random_bytes(2, 1024)
    loaded = load_tile(TileShape(rows=3, colsb=4), 1, old, memory)
    assert loaded[:64] == old[:64]
    assert loaded[64:68] == memory[64:68]
    assert loaded[128:132] == memory[128:132]
    assert not any(loaded[68:128])
    assert not any(loaded[132:])


@pytest.mark.parametrize("op", [op for op in TileOp if op.needs_tile_data])
def test_an_access_that_is_done_starts_the_next_at_row_0(op: TileOp) -> None:
    """start_row says where an interrupted access goes on: each instruction that ends sets it to 0.

    Source: SDM vol. 2, TILELOADD, TILESTORED and TILEZERO, zero_tilecfg_start().
    """
    cpu = _cpu()
    cpu.tile_instruction(TileOp.LDTILECFG, 0, tilecfg(start_row=3), _XCR0)
    memory = bytes(1024) if op is TileOp.TILELOADD else b""
    assert isinstance(cpu.tile_instruction(op, 0, memory, _XCR0), bytes)
    assert cpu.tile_instruction(TileOp.STTILECFG, 0, b"", _XCR0) == tilecfg()


def test_every_ldtilecfg_zeroes_the_tiles() -> None:
    """LDTILECFG leaves no tile as it was; with palette 0 the configuration is in its init state as well."""
    cpu = _cpu()
    cpu.tile_instruction(TileOp.LDTILECFG, 0, tilecfg(), _XCR0)
    cpu.tile_instruction(TileOp.TILELOADD, 0, random_bytes(1, 1024), _XCR0)
    cpu.tile_instruction(TileOp.LDTILECFG, 0, tilecfg(8, 32), _XCR0)
    assert cpu.xinuse & XFEATURE_MASK_XTILE == XFEATURE_MASK_XTILE_CFG
    cpu.tile_instruction(TileOp.LDTILECFG, 0, bytes(64), _XCR0)
    assert not cpu.xinuse & XFEATURE_MASK_XTILE


@pytest.mark.parametrize(
    ("op", "xcr0", "ts", "config", "vector"),
    [
        pytest.param(TileOp.TILEZERO, 0x2E7, False, tilecfg(), Vector.UD, id="XCR0[18:17] = 00: #UD"),
        pytest.param(TileOp.TILERELEASE, 0x202E7, False, tilecfg(), Vector.UD, id="XCR0[18:17] = 01: #UD"),
        pytest.param(TileOp.STTILECFG, 0x402E7, False, tilecfg(), Vector.UD, id="XCR0[18:17] = 10: #UD"),
        pytest.param(TileOp.LDTILECFG, 0x2E7, True, tilecfg(), Vector.UD, id="#UD comes before CR0.TS"),
        pytest.param(TileOp.LDTILECFG, _XCR0, True, tilecfg(), Vector.NM, id="CR0.TS: #NM"),
        pytest.param(TileOp.TILEZERO, _XCR0, False, bytes(64), Vector.UD, id="no configuration: #UD"),
        pytest.param(TileOp.TILEZERO, _XCR0, False, tilecfg(0, 0), Vector.UD, id="a tile not configured: #UD"),
        pytest.param(
            TileOp.TILELOADD, _XCR0, False, tilecfg(4, 4, start_row=4), Vector.UD, id="start_row too high: #UD"
        ),
    ],
)
def test_faults(op: TileOp, xcr0: int, ts: bool, config: bytes, vector: Vector) -> None:
    """What tile instructions raise, XFD apart; XFD_ERR is touched by none of these."""
    cpu = _cpu()
    cpu.tile_instruction(TileOp.LDTILECFG, 0, config, _XCR0)
    cpu.cr0_ts = ts
    memory = {TileOp.LDTILECFG: config, TileOp.TILELOADD: bytes(1024)}.get(op, b"")
    assert cpu.tile_instruction(op, 0, memory, xcr0) is vector
    assert cpu.xfd_err == 0


@pytest.mark.parametrize("op", list(TileOp))
def test_xfd(op: TileOp) -> None:
    """With XFD[18] set, exactly the instructions that need tile data take #NM, and XFD_ERR is loaded, not ORed."""
    cpu = _cpu()
    cpu.tile_instruction(TileOp.LDTILECFG, 0, tilecfg(), _XCR0)
    cpu.xfd_set_state(XFEATURE_MASK_XTILE_DATA)
    cpu.xfd_err = 1 << 40
    memory = {TileOp.LDTILECFG: tilecfg(), TileOp.TILELOADD: bytes(1024)}.get(op, b"")
    result = cpu.tile_instruction(op, 0, memory, _XCR0)
    assert (result is Vector.NM) == op.needs_tile_data
    assert cpu.xfd_err == (XFEATURE_MASK_XTILE_DATA if op.needs_tile_data else 1 << 40)


def test_configuration_that_ldtilecfg_would_refuse() -> None:
    """XRSTOR loads any TILECFG, for images come from userspace: then no tile is configured, and nothing breaks."""
    cpu = _cpu()
    cpu.write_register(XFEATURE_XTILE_CFG, 0, tilecfg(palette=9))
    assert cpu.tile_instruction(TileOp.TILEZERO, 0, b"", _XCR0) is Vector.UD


@pytest.mark.parametrize(
    ("feature", "xcr0", "vector"),
    [
        pytest.param(0, 0x1, None, id="x87 always works"),
        pytest.param(1, 0x1, None, id="so does SSE, which no XCR0 bit can take away"),
        pytest.param(2, 0x3, Vector.UD, id="YMM without XCR0[2]: #UD"),
        pytest.param(2, 0x7, None, id="YMM"),
        pytest.param(6, 0x7, Vector.UD, id="ZMM without XCR0[6]: #UD"),
        pytest.param(17, 0x20003, Vector.UD, id="TILECFG needs both tile bits"),
        pytest.param(18, 0x40003, Vector.UD, id="TILEDATA too"),
        pytest.param(16, 0x3, Vector.UD, id="the component in front of them does not: #UD without XCR0[16]"),
        pytest.param(16, 0x10003, None, id="and fine with it alone"),
        pytest.param(17, 0x60003, None, id="TILECFG is not disarmed by XFD[18]"),
        pytest.param(18, 0x60003, Vector.NM, id="TILEDATA under XFD[18]: #NM"),
    ],
)
def test_register_use(feature: int, xcr0: int, vector: Vector | None) -> None:
    """What an instruction that uses a register raises under XFD[18] = 1."""
    cpu = _cpu()
    cpu.xfd_set_state(XFEATURE_MASK_XTILE_DATA)
    assert cpu.register_fault(feature, xcr0) is vector
    cpu.cr0_ts = True
    assert cpu.register_fault(feature, xcr0) is (Vector.UD if vector is Vector.UD else Vector.NM)


def test_xfd_err_names_what_was_used() -> None:
    """Of all that XFD disables, the component that the instruction needs: loaded, not added to what was there."""
    cpu = _cpu()
    cpu.xfd, cpu.xfd_err = XFEATURE_MASK_XTILE_DATA | 1 << 19, 1 << 40
    assert cpu.register_fault(18, 0xE0007) is Vector.NM
    assert cpu.xfd_err == XFEATURE_MASK_XTILE_DATA


def test_a_tile_of_one_row() -> None:
    """The smallest tile: one row, of four bytes."""
    cpu = _cpu()
    cpu.tile_instruction(TileOp.LDTILECFG, 0, tilecfg(rows=1, colsb=4), _XCR0)
    assert cpu.tile_instruction(TileOp.TILELOADD, 0, b"\7" * 1024, _XCR0) == b""
    assert cpu.tile_instruction(TileOp.TILESTORED, 0, b"", _XCR0) == b"\7" * 4 + bytes(1020)
