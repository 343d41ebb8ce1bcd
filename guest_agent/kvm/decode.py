"""Decoding of a tile instruction from its bytes and the registers: what it is, which tile, which memory.

Only the six instructions of `TileOp` are known (TILELOADDT1 counts as TILELOADD: the hint changes no result).
Everything else, the tile arithmetic included, is None: a true #UD.

Source: SDM vol. 2, the instructions' pages and "Instruction format" (VEX prefix, ModR/M, SIB).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guest_agent.event import TileOp

#: The longest instruction the processor accepts.
INSTRUCTION_BYTES_MAX = 15

_VEX3 = 0xC4
_MAP_0F38 = 2
_NP, _66, _F3, _F2 = range(4)  # VEX.pp
_OPCODE_CONFIG, _OPCODE_MEMORY = 0x49, 0x4B
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class TileInstruction:
    """A decoded tile instruction.

    Attributes:
        op: which one.
        tile: number of the tile register, 0 where there is none.
        address: linear address of its memory operand, for TILELOADD and TILESTORED of row 0; None where there is none.
        stride: bytes from one row to the next, as a 64-bit number that wraps; 0 for instructions without rows.
        length: bytes of the instruction.
    """

    op: TileOp
    tile: int
    address: int | None
    stride: int
    length: int


def decode_tile(code: bytes, *, rip: int, gprs: Sequence[int]) -> TileInstruction | None:
    """Decode the tile instruction at the start of `code`, or return None if there is none (or it is cut off).

    `rip` is the address of `code`; `gprs` are the sixteen general registers in encoding order, 64 bits each.
    """
    if len(code) < 5 or code[0] != _VEX3:
        return None
    vex = _Vex.read(code)
    if not vex.plain:
        return None
    modrm = code[4]
    if modrm >> 6 == 3:
        return _register_form(vex, modrm)
    return _memory_form(vex, code, rip=rip, gprs=gprs)


@dataclass(frozen=True, slots=True)
class _Vex:
    """The three-byte VEX prefix and the opcode; r, x, b are the register extensions, put upright."""

    r: int
    x: int
    b: int
    pp: int
    opcode: int
    plain: bool  # map 0F38, W0, 128 bits, no second source: what all tile moves have

    @classmethod
    def read(cls, code: bytes) -> _Vex:
        first, second = ~code[1] & 0xFF, code[2]
        plain = code[1] & 0x1F == _MAP_0F38 and second & 0xFC == 0b0_1111_0_00
        return cls(first >> 7 & 1, first >> 6 & 1, first >> 5 & 1, second & 3, code[3], plain)


def _register_form(vex: _Vex, modrm: int) -> TileInstruction | None:
    if vex.opcode != _OPCODE_CONFIG:
        return None
    tile = modrm >> 3 & 7
    if vex.pp == _NP and modrm == 0xC0:
        return TileInstruction(TileOp.TILERELEASE, tile=0, address=None, stride=0, length=5)
    if vex.pp == _F2 and modrm & 7 == 0 and not vex.r:
        return TileInstruction(TileOp.TILEZERO, tile=tile, address=None, stride=0, length=5)
    return None


_MEMORY_OPS = {
    (_OPCODE_CONFIG, _NP): TileOp.LDTILECFG,
    (_OPCODE_CONFIG, _66): TileOp.STTILECFG,
    (_OPCODE_MEMORY, _F2): TileOp.TILELOADD,
    (_OPCODE_MEMORY, _66): TileOp.TILELOADD,
    (_OPCODE_MEMORY, _F3): TileOp.TILESTORED,
}


def _memory_form(vex: _Vex, code: bytes, *, rip: int, gprs: Sequence[int]) -> TileInstruction | None:
    op = _MEMORY_OPS.get((vex.opcode, vex.pp))
    reg, rm = code[4] >> 3 & 7, code[4] & 7
    has_rows = op in (TileOp.TILELOADD, TileOp.TILESTORED)
    # Row addressing needs a SIB byte; the configuration instructions need reg = 0, the rows' a tile below 8.
    if op is None or vex.r or (rm != 4 if has_rows else reg != 0):
        return None
    operand = _operand(vex, code, gprs)
    if operand is None:
        return None
    address = operand.address + (rip + operand.length if operand.rip_relative else 0)
    if not has_rows:
        address += operand.index
    stride = operand.index & _MASK64 if has_rows else 0
    return TileInstruction(op, tile=reg, address=address & _MASK64, stride=stride, length=operand.length)


@dataclass(frozen=True, slots=True)
class _Operand:
    """A memory operand: base plus displacement, and the scaled index apart, as it is the stride of rows."""

    address: int
    index: int
    rip_relative: bool
    length: int  # of the whole instruction


def _operand(vex: _Vex, code: bytes, gprs: Sequence[int]) -> _Operand | None:
    mod, rm = code[4] >> 6, code[4] & 7
    base, index, end = rm, 0, 5
    if rm == 4:
        if len(code) < 6:
            return None
        sib, end = code[5], 6
        base = sib & 7
        number = vex.x << 3 | sib >> 3 & 7
        # Register 4 as an index means none: the stride is then 0.
        index = 0 if number == 4 else gprs[number] << (sib >> 6)
    no_base = mod == 0 and base == 5
    size = 4 if mod == 2 or no_base else mod
    if len(code) < end + size:
        return None
    displacement = int.from_bytes(code[end : end + size], "little", signed=True)
    start = 0 if no_base else gprs[vex.b << 3 | base]
    return _Operand(start + displacement, index, rip_relative=no_base and rm == 5, length=end + size)
