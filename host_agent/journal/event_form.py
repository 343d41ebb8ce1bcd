"""The binary form of one guest event inside a batch: what a host does all day is not written as JSON.

vCPU's index in the batch's table u16, number u64, code u8, and by code:

0 JSON        length u32, the event's kind as host_agent.log writes it: any kind, and any odd value
1 enter       length u16, task in UTF-8          8 register write  feature u16, offset u32, length u32, bytes
2 leave                                          9 register read   feature u16, offset u32, length u32
3 preempt     cpu i32, -1 for the same one      10 tile            op u8, tile u8, length u16, bytes
4 xsetbv      index u32, value u64, cpl u8      11 xfd sync        xfd u64
5 wrmsr       msr u32, value u64                12 init
6 rdmsr       msr u32                           13 hlt
7 nm          CR0.TS u8                        14 xsave           insn u8, rfbm u64, misaligned u8, length u32, bytes
                                               15 xgetbv          index u32
                                               16 write cr4       value u64
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from fpu_core.tile import TileOp
from fpu_core.xsave_insn import XsaveInsn
from host_agent import log
from host_agent.events import (
    Enter,
    EventKind,
    GuestEvent,
    Hlt,
    Init,
    Leave,
    Nm,
    Preempt,
    Rdmsr,
    RegisterRead,
    RegisterWrite,
    Tile,
    WriteCr4,
    Wrmsr,
    XfdSync,
    Xgetbv,
    Xsave,
    Xsetbv,
)

HEAD: Final = struct.Struct("<HQB")
_JSON: Final = struct.Struct("<HQBI")
_ENTER: Final = struct.Struct("<HQBH")
_PREEMPT: Final = struct.Struct("<HQBi")
_XSETBV: Final = struct.Struct("<HQBIQB")
_WRMSR: Final = struct.Struct("<HQBIQ")
_RDMSR: Final = struct.Struct("<HQBI")
_NM: Final = struct.Struct("<HQBB")
_REGISTER: Final = struct.Struct("<HQBHII")
_TILE: Final = struct.Struct("<HQBBBH")
_XFD: Final = struct.Struct("<HQBQ")
_XSAVE: Final = struct.Struct("<HQBBQBI")

#: Codes of the tile instructions; a new one goes at the end.
_TILE_OPS: Final = (
    TileOp.LDTILECFG,
    TileOp.STTILECFG,
    TileOp.TILERELEASE,
    TileOp.TILELOADD,
    TileOp.TILESTORED,
    TileOp.TILEZERO,
)
_TILE_CODES: Final = {op: code for code, op in enumerate(_TILE_OPS)}
#: Codes of the XSAVE instructions, likewise.
_XSAVE_INSNS: Final = (XsaveInsn.XSAVE, XsaveInsn.XSAVEOPT, XsaveInsn.XSAVEC, XsaveInsn.XRSTOR)
_XSAVE_CODES: Final = {insn: code for code, insn in enumerate(_XSAVE_INSNS)}


def _enter(vcpu: int, seq: int, kind: Enter) -> bytes:
    task = kind.task.encode()
    return _ENTER.pack(vcpu, seq, 1, len(task)) + task


def _preempt(vcpu: int, seq: int, kind: Preempt) -> bytes:
    if kind.cpu is not None and kind.cpu < 0:
        raise struct.error("a CPU below 0 would read as none")
    return _PREEMPT.pack(vcpu, seq, 3, -1 if kind.cpu is None else kind.cpu)


def _register_write(vcpu: int, seq: int, kind: RegisterWrite) -> bytes:
    return _REGISTER.pack(vcpu, seq, 8, kind.feature, kind.offset, len(kind.data)) + kind.data


def _tile(vcpu: int, seq: int, kind: Tile) -> bytes:
    return _TILE.pack(vcpu, seq, 10, _TILE_CODES[kind.op], kind.tile, len(kind.memory)) + kind.memory


def _xsave(vcpu: int, seq: int, kind: Xsave) -> bytes:
    insn, memory = _XSAVE_CODES[kind.insn], kind.memory
    return _XSAVE.pack(vcpu, seq, 14, insn, kind.rfbm, kind.misaligned_by, len(memory)) + memory


#: By the type of an event's kind; each packer is given its own.
_PACKERS: Final[dict[type, Callable[[int, int, Any], bytes]]] = {
    Enter: _enter,
    Leave: lambda vcpu, seq, _kind: HEAD.pack(vcpu, seq, 2),
    Preempt: _preempt,
    Xsetbv: lambda vcpu, seq, kind: _XSETBV.pack(vcpu, seq, 4, kind.index, kind.value, kind.cpl),
    Wrmsr: lambda vcpu, seq, kind: _WRMSR.pack(vcpu, seq, 5, kind.msr, kind.value),
    Rdmsr: lambda vcpu, seq, kind: _RDMSR.pack(vcpu, seq, 6, kind.msr),
    Nm: lambda vcpu, seq, kind: _NM.pack(vcpu, seq, 7, kind.cr0_ts),
    RegisterWrite: _register_write,
    RegisterRead: lambda vcpu, seq, kind: _REGISTER.pack(vcpu, seq, 9, kind.feature, kind.offset, kind.length),
    Tile: _tile,
    XfdSync: lambda vcpu, seq, kind: _XFD.pack(vcpu, seq, 11, kind.xfd),
    Xsave: _xsave,
    Xgetbv: lambda vcpu, seq, kind: _RDMSR.pack(vcpu, seq, 15, kind.index),
    WriteCr4: lambda vcpu, seq, kind: _XFD.pack(vcpu, seq, 16, kind.value),
    Init: lambda vcpu, seq, _kind: HEAD.pack(vcpu, seq, 12),
    Hlt: lambda vcpu, seq, _kind: HEAD.pack(vcpu, seq, 13),
}


def pack_event(vcpu: int, event: GuestEvent) -> bytes:
    """Return the bytes of an event; ``vcpu`` is its vCPU's index in the batch's table.

    Raises ``struct.error`` for a sequence number that no u64 holds.
    """
    kind = event.kind
    packer = _PACKERS.get(type(kind))
    if packer is not None:
        try:
            return packer(vcpu, event.seq, kind)
        except struct.error:
            pass  # an operand out of range: JSON holds any
    text = json.dumps(log.encode(kind), separators=(",", ":")).encode()
    return _JSON.pack(vcpu, event.seq, 0, len(text)) + text


# -- and back ----------------------------------------------------------------------------------------------------------

_Read = tuple[EventKind, int]


def _read_json(raw: bytes, at: int) -> _Read:
    text, end = _counted(raw, at + _JSON.size, _JSON.unpack_from(raw, at)[3])
    return log.decode(json.loads(text)), end


def _read_enter(raw: bytes, at: int) -> _Read:
    task, end = _counted(raw, at + _ENTER.size, _ENTER.unpack_from(raw, at)[3])
    return Enter(task.decode()), end


def _read_preempt(raw: bytes, at: int) -> _Read:
    cpu = _PREEMPT.unpack_from(raw, at)[3]
    return Preempt(None if cpu < 0 else cpu), at + _PREEMPT.size


def _read_register_write(raw: bytes, at: int) -> _Read:
    feature, offset, length = _REGISTER.unpack_from(raw, at)[3:]
    data, end = _counted(raw, at + _REGISTER.size, length)
    return RegisterWrite(feature, offset, data), end


def _read_tile(raw: bytes, at: int) -> _Read:
    op, tile, length = _TILE.unpack_from(raw, at)[3:]
    memory, end = _counted(raw, at + _TILE.size, length)
    return Tile(_TILE_OPS[op], tile, memory), end


def _read_xsave(raw: bytes, at: int) -> _Read:
    insn, rfbm, misaligned_by, length = _XSAVE.unpack_from(raw, at)[3:]
    memory, end = _counted(raw, at + _XSAVE.size, length)
    return Xsave(_XSAVE_INSNS[insn], rfbm, memory, misaligned_by), end


#: By code, the sizes of those that are always as long.
_SIZES: Final = {
    2: HEAD.size,
    3: _PREEMPT.size,
    4: _XSETBV.size,
    5: _WRMSR.size,
    6: _RDMSR.size,
    7: _NM.size,
    9: _REGISTER.size,
    11: _XFD.size,
    12: HEAD.size,
    13: HEAD.size,
    15: _RDMSR.size,
    16: _XFD.size,
}
#: Where the code is: what comes from there on says what the event is, whosever it is.
_CODE_AT: Final = HEAD.size - 1
#: By code.
_READERS: Final[tuple[Callable[[bytes, int], _Read], ...]] = (
    _read_json,
    _read_enter,
    lambda _raw, at: (Leave(), at + HEAD.size),
    _read_preempt,
    lambda raw, at: (Xsetbv(*_XSETBV.unpack_from(raw, at)[3:]), at + _XSETBV.size),
    lambda raw, at: (Wrmsr(*_WRMSR.unpack_from(raw, at)[3:]), at + _WRMSR.size),
    lambda raw, at: (Rdmsr(_RDMSR.unpack_from(raw, at)[3]), at + _RDMSR.size),
    lambda raw, at: (Nm(bool(_NM.unpack_from(raw, at)[3])), at + _NM.size),
    _read_register_write,
    lambda raw, at: (RegisterRead(*_REGISTER.unpack_from(raw, at)[3:]), at + _REGISTER.size),
    _read_tile,
    lambda raw, at: (XfdSync(_XFD.unpack_from(raw, at)[3]), at + _XFD.size),
    lambda _raw, at: (Init(), at + HEAD.size),
    lambda _raw, at: (Hlt(), at + HEAD.size),
    _read_xsave,
    lambda raw, at: (Xgetbv(_RDMSR.unpack_from(raw, at)[3]), at + _RDMSR.size),
    lambda raw, at: (WriteCr4(_XFD.unpack_from(raw, at)[3]), at + _XFD.size),
)


def unpack_event(raw: bytes, at: int, vcpus: list[str]) -> tuple[GuestEvent, int]:
    """Read the event at an offset; returns it and the offset behind it."""
    vcpu, seq, code = HEAD.unpack_from(raw, at)
    size = _SIZES.get(code)
    if size is None:
        kind, end = _READERS[code](raw, at)
        return GuestEvent(vcpus[vcpu], seq, kind), end
    end = at + size
    return GuestEvent(vcpus[vcpu], seq, _fixed(raw[at + _CODE_AT : end])), end


@lru_cache(maxsize=4096)
def _fixed(said: bytes) -> EventKind:
    """An event from its code on. Guests write few values, again and again."""
    kind, _ = _READERS[said[0]](bytes(_CODE_AT) + said, 0)
    return kind


def _counted(raw: bytes, start: int, length: int) -> tuple[bytes, int]:
    end = start + length
    if end > len(raw):
        raise ValueError("an event is cut short")
    return raw[start:end], end
