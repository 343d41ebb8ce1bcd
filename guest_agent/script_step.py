"""Reading one step of a script: its words, and the operands they stand for. `script_parser` explains the grammar."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence

from fpu_core.xfeature import MSR_IA32_XFD, MSR_IA32_XFD_ERR
from guest_agent.event import (
    Enter,
    Hlt,
    Init,
    Leave,
    Nm,
    Preempt,
    Rdmsr,
    RegisterRead,
    RegisterWrite,
    Tile,
    TileOp,
    Wrmsr,
    XfdSync,
    Xsetbv,
)
from guest_agent.report import Mark
from guest_agent.script_syntax import (
    ROW_BYTES,
    ROWS,
    TILE_OPS,
    TILES,
    Action,
    Execute,
    Goto,
    LoadConfig,
    LoadTile,
    Retry,
    Say,
    Skip,
    StoreConfig,
    StoreTile,
    TileConfig,
    pattern,
)

_MSRS = {"XFD": MSR_IA32_XFD, "XFD_ERR": MSR_IA32_XFD_ERR}
_LENGTH_MAX = 1 << 16


class Expected(Exception):  # noqa: N818 -- becomes a ScriptError once it is known where
    """What was expected, and what stands there."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got!r}" if got else f"expected {expected}")


def read_action(verb: str, operands: Sequence[str]) -> Action:
    """Read what a step does.

    Raises:
        Expected: it is no step; the text says what was expected.
    """
    usage, read = _VERBS.get(verb, ("", None))
    if read is None:
        raise Expected(f"one of {', '.join(sorted(_VERBS))}", verb)
    try:
        inspect.signature(read).bind(*operands)
    except TypeError:
        raise Expected(f"`{usage}`", " ".join([verb, *operands])) from None
    return read(*operands)


def _xsetbv(index: str, value: str, cpl: str = "cpl=0") -> Action:
    return Execute(Xsetbv(_hex(value), _number(index), _number(_after("cpl=", cpl))))


def _wrmsr(msr: str, value: str) -> Action:
    return Execute(Wrmsr(_msr(msr), _hex(value)))


def _rdmsr(msr: str, equals: str = "=", value: str = "") -> Action:
    _require_equals(equals)
    return Execute(Rdmsr(_msr(msr)), value=_hex(value) if value else None)


def _write(feature: str, offset: str, content: str) -> Action:
    return Execute(RegisterWrite(_number(feature), _number(offset), _bytes(content)))


def _read(feature: str, offset: str, length: str, equals: str = "=", content: str = "") -> Action:
    _require_equals(equals)
    size = _number(length)
    expected = _bytes(content, length=size) if content else None
    if expected is not None and len(expected) != size:
        raise Expected(f"{size} bytes", f"{len(expected)} bytes")
    return Execute(RegisterRead(_number(feature), _number(offset), size), data=expected)


def _tile(op: str, *operands: str) -> Action:
    match TILE_OPS.get(op), operands:
        case TileOp.LDTILECFG, (config,):
            return LoadConfig(_config(config))
        case TileOp.TILELOADD, (tile, content):
            return LoadTile(_tile_number(tile), _number(_after("pattern=", content)))
        case TileOp.TILESTORED, (tile,):
            return StoreTile(_tile_number(tile))
        case TileOp.TILEZERO, (tile,):
            return Execute(Tile(TileOp.TILEZERO, _tile_number(tile)))
        case TileOp.TILERELEASE, ():
            return Execute(Tile(TileOp.TILERELEASE))
        case TileOp.STTILECFG, ():
            return StoreConfig()
        case None, _:
            raise Expected(f"one of {', '.join(TILE_OPS)}", op)
        case _:
            raise Expected(f"`{_TILE_USAGE[op]}`", " ".join([op, *operands]))


def _verify(what: str, tile: str) -> Action:
    if what != "tile":
        raise Expected("`verify tile N`", what)
    return StoreTile(_tile_number(tile))


def _nm(ts: str = "") -> Action:
    if ts not in ("", "ts"):
        raise Expected("`nm` or `nm ts`", ts)
    return Execute(Nm(cr0_ts=bool(ts)))


def _say(mark: str, value: str = "0") -> Action:
    known = Mark.__members__.get(mark.upper())
    if known is None:
        raise Expected(f"one of {', '.join(Mark.__members__)}", mark)
    return Say(known, None if value == "read" else _hex(value))


#: Each step by its first word: how it is written, and who reads the rest.
_VERBS: dict[str, tuple[str, Callable[..., Action]]] = {
    "enter": ("enter [TASK]", lambda task="": Execute(Enter(task))),
    "leave": ("leave", lambda: Execute(Leave())),
    "preempt": ("preempt [CPU]", lambda cpu="": Execute(Preempt(_number(cpu) if cpu else None))),
    "xsetbv": ("xsetbv INDEX VALUE [cpl=N]", _xsetbv),
    "wrmsr": ("wrmsr MSR VALUE", _wrmsr),
    "rdmsr": ("rdmsr MSR [= VALUE]", _rdmsr),
    "nm": ("nm [ts]", _nm),
    "write": ("write FEATURE OFFSET BYTES", _write),
    "read": ("read FEATURE OFFSET LENGTH [= BYTES]", _read),
    "tile": ("tile OP ...", _tile),
    "verify": ("verify tile N", _verify),
    "xfd_sync": ("xfd_sync VALUE", lambda value: Execute(XfdSync(_hex(value)))),
    "init": ("init", lambda: Execute(Init())),
    "hlt": ("hlt", lambda: Execute(Hlt())),
    "say": ("say MARK [VALUE]", _say),
    "goto": ("goto LABEL", Goto),
    "retry": ("retry", Retry),
    "skip": ("skip", Skip),
}

_TILE_USAGE = {
    "ldtilecfg": "tile ldtilecfg TILESxROWSxBYTES",
    "sttilecfg": "tile sttilecfg",
    "tilerelease": "tile tilerelease",
    "tilezero": "tile tilezero N",
    "tileloadd": "tile tileloadd N pattern=SEED",
    "tilestored": "tile tilestored N",
}


# ---- operands --------------------------------------------------------------------------------------------------------


def _hex(text: str) -> int:
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]{1,16}", text):
        raise Expected("a hexadecimal number of at most 64 bits", text)
    return int(text, 16)


def _number(text: str, *, maximum: int = (1 << 32) - 1) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > maximum:
        raise Expected(f"a decimal number, 0 to {maximum}", text)
    return int(text)


def _tile_number(text: str) -> int:
    return _number(text, maximum=TILES - 1)


def _msr(text: str) -> int:
    return _MSRS[text] if text in _MSRS else _number(text) if text.isdecimal() else _hex_msr(text)


def _hex_msr(text: str) -> int:
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,8}", text):
        raise Expected("XFD, XFD_ERR or the number of an MSR (0x1c4)", text)
    return int(text, 16)


def _after(prefix: str, text: str) -> str:
    if not text.startswith(prefix):
        raise Expected(f"`{prefix}N`", text)
    return text.removeprefix(prefix)


def _require_equals(text: str) -> None:
    if text != "=":
        raise Expected("`=` before what must be read", text)


def _bytes(text: str, *, length: int | None = None) -> bytes:
    """Read BYTES; `length` is for a pattern that has none of its own."""
    head, _, size = text.partition(":")
    if head == "zero" or head.startswith("pattern="):
        if not size and length is None:
            raise Expected(f"`{head}:LENGTH`", text)
        count = _number(size, maximum=_LENGTH_MAX) if size else length or 0
        return bytes(count) if head == "zero" else pattern(_number(head.removeprefix("pattern=")), count)
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise Expected("bytes in hexadecimal, pattern=SEED:LENGTH or zero:LENGTH", text) from None


def _config(text: str) -> TileConfig:
    match = re.fullmatch(r"([0-9]+)x([0-9]+)x([0-9]+)", text)
    if match is None:
        raise Expected("TILESxROWSxBYTES, `8x16x64`", text)
    tiles, rows, row_bytes = map(int, match.groups())
    if not (1 <= tiles <= TILES and 1 <= rows <= ROWS and 1 <= row_bytes <= ROW_BYTES):
        raise Expected(f"1 to {TILES} tiles of 1 to {ROWS} rows of 1 to {ROW_BYTES} bytes", text)
    return TileConfig(tiles, rows, row_bytes)
