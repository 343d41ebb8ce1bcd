"""A command as bytes.

1 byte   form
form 0   JSON, as host_agent.log writes it: every command
form 1   a batch of guest events:
         u16 length and session, u64 epoch
         u16 count, then u16 length and name of each vCPU: the table that events refer to
         u16 count, then u16 vCPU and u64 number of each "received through"
         u32 count, then the events: host_agent.journal.event_form
"""

from __future__ import annotations

import json
import struct
from typing import Final

from host_agent import log
from host_agent.commands import Command, SubmitBatch
from host_agent.events import GuestEvent
from host_agent.journal.event_form import pack_event, unpack_event

_JSON: Final = b"\x00"
_BATCH: Final = b"\x01"
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_RECEIVED: Final = struct.Struct("<HQ")


class BadCommandError(ValueError):
    """Bytes that are no command of ours."""


def pack_command(command: Command) -> bytes:
    """Return the bytes of a command."""
    if isinstance(command, SubmitBatch):
        try:
            return _pack_batch(command)
        except struct.error:
            pass  # a number or a text that the binary form has no room for
    return _JSON + json.dumps(log.encode(command), separators=(",", ":")).encode()


def unpack_command(raw: bytes) -> Command:
    """Read a command. Raises ``BadCommandError``."""
    try:
        if raw[:1] == _BATCH:
            return _unpack_batch(raw)
        if raw[:1] == _JSON:
            command: Command = log.decode(json.loads(raw[1:]))
            return command
    except (struct.error, ValueError, LookupError, TypeError, RecursionError) as error:
        raise BadCommandError(f"not a command: {error!r}") from error
    raise BadCommandError(f"form {raw[:1].hex()} of a command is not known")


def events_in(command: bytes) -> int:
    """How many guest events a packed command holds, without reading them; 1 for any other command."""
    if command[:1] != _BATCH:
        return 1
    at = 1 + 2 + _U16.unpack_from(command, 1)[0] + 8
    (count,) = _U16.unpack_from(command, at)
    at += 2
    for _ in range(count):
        at += 2 + _U16.unpack_from(command, at)[0]
    (count,) = _U16.unpack_from(command, at)
    return int(_U32.unpack_from(command, at + 2 + count * _RECEIVED.size)[0])


def _pack_batch(batch: SubmitBatch) -> bytes:
    indices: dict[str, int] = {}
    received = b"".join(
        _RECEIVED.pack(indices.setdefault(name, len(indices)), number) for name, number in batch.received
    )
    events = [pack_event(indices.setdefault(event.vcpu, len(indices)), event) for event in batch.events]
    names = [_text(name) for name in indices]
    return b"".join(
        (
            _BATCH,
            _text(batch.session),
            _U64.pack(batch.epoch),
            _U16.pack(len(names)),
            *names,
            _U16.pack(len(batch.received)),
            received,
            _U32.pack(len(events)),
            *events,
        )
    )


def _text(value: str) -> bytes:
    raw = value.encode()
    return _U16.pack(len(raw)) + raw


def _unpack_batch(raw: bytes) -> SubmitBatch:
    session, at = _read_text(raw, 1)
    (epoch,) = _U64.unpack_from(raw, at)
    (count,) = _U16.unpack_from(raw, at + 8)
    at += 10
    names: list[str] = []
    for _ in range(count):
        name, at = _read_text(raw, at)
        names.append(name)
    (count,) = _U16.unpack_from(raw, at)
    at += 2
    marks = [_RECEIVED.unpack_from(raw, at + nr * _RECEIVED.size) for nr in range(count)]
    at += count * _RECEIVED.size
    (count,) = _U32.unpack_from(raw, at)
    at += 4
    events: list[GuestEvent] = []
    for _ in range(count):
        event, at = unpack_event(raw, at, names)
        events.append(event)
    if at != len(raw):
        raise ValueError(f"{len(raw) - at} bytes too many")
    received = tuple((names[vcpu], number) for vcpu, number in marks)
    return SubmitBatch(session=session, epoch=epoch, events=tuple(events), received=received)


def _read_text(raw: bytes, at: int) -> tuple[str, int]:
    end = at + 2 + _U16.unpack_from(raw, at)[0]
    return raw[at + 2 : end].decode(), end
