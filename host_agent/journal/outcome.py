"""What came of a command, as bytes that a replay is compared with: the reply or refusal, and what it made known.

    1 byte   form
    form 0   JSON: {"reply": ...} or {"refused": reason, ...} or {"bug": ...}, and "effects" where there are any
    form 1   a batch's outcomes, one for each event in order:
             code u8 0: u32 length, JSON
             code u8 1, done: flags u8, then value u64, u32 length and data, growth 3 x u64 for those of the flags
                        1 value, 2 data, 4 skip_instruction, 8 growth, 16 intercepts: 32 XFD read, 64 write, 128 #NM
             code u8 2, inject: vector u8, error code i32 (-1 for none), XFD_ERR u64
    form 2   u32 length and JSON of the effects, then as form 1

Texts for people are not part of it: a better wording is no other outcome.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from host_agent.commands import Command, SubmitBatch
from host_agent.effects import Effect
from host_agent.errors import Refused
from host_agent.events import DoneOutcome, InjectOutcome, Outcome, OutcomeKind, RejectedOutcome

_DONE: Final = struct.Struct("<BB")
_INJECT: Final = struct.Struct("<BBiQ")
_JSON: Final = struct.Struct("<BI")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_GROWTH: Final = struct.Struct("<QQQ")
#: Metadata of a refusal that is wording.
_WORDS: Final = frozenset({"expected", "got", "known", "text", "detail", "invariant"})
#: What a guest event usually comes to: done, skip the instruction, and one of the eight ways to intercept.
_PLAIN_DONE: Final = {flags: _DONE.pack(1, flags) for flags in range(256)}


def pack_outcome(command: Command, result: object, effects: Sequence[Effect]) -> bytes:
    """Return the bytes of what came of a command: its reply, or the exception it ended with."""
    if isinstance(command, SubmitBatch) and isinstance(result, tuple) and len(result) == len(command.events):
        packed = _pack_outcomes(command, result)
        if packed is not None:
            return b"\x02" + _sized_json(effects) + packed if effects else b"\x01" + packed
    described: dict[str, object] = _described_result(result)
    if effects:
        described["effects"] = [_plain(effect) for effect in effects]
    return b"\x00" + _json(described)


def _pack_outcomes(batch: SubmitBatch, outcomes: Sequence[Outcome]) -> bytes | None:
    """None where an outcome is not its event's, which the binary form cannot say."""
    parts: list[bytes] = []
    for event, outcome in zip(batch.events, outcomes, strict=True):
        if outcome.seq != event.seq or outcome.vcpu != event.vcpu:
            return None
        parts.append(_pack_kind(outcome.kind))
    return b"".join(parts)


def _pack_kind(kind: OutcomeKind) -> bytes:
    try:
        if isinstance(kind, DoneOutcome):
            return _pack_done(kind)
        if isinstance(kind, InjectOutcome):
            error = -1 if kind.error_code is None else kind.error_code
            return _INJECT.pack(2, kind.vector, error, kind.xfd_err)
    except struct.error:
        pass
    text = _json(_plain(kind))
    return _JSON.pack(0, len(text)) + text


def _pack_done(done: DoneOutcome) -> bytes:
    flags = 4 if done.skip_instruction else 0
    seen = done.intercepts
    if seen is not None:
        flags |= 16 | (32 if seen.xfd_read else 0) | (64 if seen.xfd_write else 0) | (128 if seen.nm else 0)
    value, data, growth = done.value, done.data, done.reallocated
    if value is None and not data and growth is None:
        return _PLAIN_DONE[flags]
    flags |= (value is not None) | 2 * bool(data) | 8 * (growth is not None)
    parts = [_DONE.pack(1, flags)]
    if value is not None:
        parts.append(_U64.pack(value))
    if data:
        parts += (_U32.pack(len(data)), data)
    if growth is not None:
        parts.append(_GROWTH.pack(growth.old_bytes, growth.new_bytes, growth.xfeatures))
    return b"".join(parts)


def _sized_json(effects: Sequence[Effect]) -> bytes:
    text = _json([_plain(effect) for effect in effects])
    return _U32.pack(len(text)) + text


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


# -- in words ----------------------------------------------------------------------------------------------------------


def _described_result(result: object) -> dict[str, object]:
    match result:
        case Refused():
            facts = {key: value for key, value in result.metadata.items() if key not in _WORDS}
            return {"refused": result.reason.name, "field": result.field, "metadata": facts}
        case Exception():
            return {"bug": type(result).__name__}
        case _:
            return {"reply": _plain(result)}


def _plain(value: object) -> object:
    """Values as JSON has them; a resource by its name, whatever is in it."""
    match value:
        case None | bool() | int() | str():
            return value
        case enum.Enum():
            return value.name
        case bytes() | bytearray():
            return {"hex": bytes(value).hex()}
        case RejectedOutcome():
            return {"rejected": value.reason, "field": value.field}
        case tuple() | list():
            return [_plain(item) for item in value]
        case Mapping():
            return [[_plain(key), _plain(item)] for key, item in value.items()]
        case set() | frozenset():
            return sorted(str(_plain(item)) for item in value)
    kind = type(value).__name__
    name = getattr(value, "name", None)
    if isinstance(name, str):
        return f"{kind} {name}"
    if dataclasses.is_dataclass(value) and _is_frozen(type(value)):
        return {"type": kind} | {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    index = getattr(value, "index", None)
    return f"{kind} {index}" if isinstance(index, int) else kind


def _is_frozen(kind: type) -> bool:
    """Whether a dataclass is a value, and not a record that goes on changing."""
    return bool(kind.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def outcome_text(raw: bytes) -> str:
    """An outcome for people: of a refusal, a reply or a batch."""
    if raw[:1] == b"\x00":
        return raw[1:].decode(errors="replace")
    try:
        return "; ".join(_batch_texts(raw))
    except (struct.error, IndexError, ValueError):
        return f"unreadable: {raw.hex()}"


def _batch_texts(raw: bytes) -> list[str]:
    """Every outcome of a batch, then the effects."""
    effects: list[str] = []
    at = 1
    if raw[:1] == b"\x02":
        at = 5 + _U32.unpack_from(raw, 1)[0]
        effects.append("effects " + raw[5:at].decode())
    parts: list[str] = []
    while at < len(raw):
        text, at = _kind_text(raw, at)
        parts.append(text)
    return parts + effects


def _kind_text(raw: bytes, at: int) -> tuple[str, int]:
    match raw[at]:
        case 0:
            start = at + _JSON.size
            end = start + _JSON.unpack_from(raw, at)[1]
            return raw[start:end].decode(), end
        case 1:
            return _done_text(raw, at)
        case 2:
            _, vector, error, xfd_err = _INJECT.unpack_from(raw, at)
            code = "" if error < 0 else f" error_code={error:#x}"
            return f"inject vector={vector}{code} xfd_err={xfd_err:#x}", at + _INJECT.size
        case code:
            raise ValueError(f"outcome code {code}")


def _done_text(raw: bytes, at: int) -> tuple[str, int]:
    flags = raw[at + 1]
    at += 2
    parts = ["done"]
    if flags & 1:
        parts.append(f"value={_U64.unpack_from(raw, at)[0]:#x}")
        at += 8
    if flags & 2:
        length = _U32.unpack_from(raw, at)[0]
        parts.append(f"data={length} bytes")
        at += 4 + length
    if flags & 4:
        parts.append("skip")
    if flags & 8:
        old, new, xfeatures = _GROWTH.unpack_from(raw, at)
        parts.append(f"grew {old}->{new} xfeatures={xfeatures:#x}")
        at += _GROWTH.size
    if flags & 16:
        names = [name for bit, name in ((32, "xfd_read"), (64, "xfd_write"), (128, "nm")) if flags & bit]
        parts.append("intercepts=" + ("+".join(names) or "none"))
    return " ".join(parts), at
