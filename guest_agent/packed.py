"""Batches as packed records, which cost a host a third of what messages cost it; docs/wire.md has the layout.

A batch goes packed where every event of it can be: an event that a record cannot say goes, with its batch, as messages.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fpstate.v1 import event_pb2 as pb

from guest_agent.event import (
    Enter,
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
from guest_agent.wire import TILE_OPS, XSAVE_INSNS, batch_to_proto, event_to_proto

#: kind, flags, payload_bytes, vcpu_ordinal, arg, seq, value.
_HEADER = struct.Struct("<HHIIIQQ")
_U32 = 0xFFFF_FFFF
_CPL_MAX = 3


class NumberedEvent(NamedTuple):
    """An event with the vCPU it is of and its number there."""

    vcpu: str
    seq: int
    event: GuestEvent


class _Fields(NamedTuple):
    """What a record holds beside its vCPU and number."""

    kind: int
    flags: int = 0
    arg: int = 0
    value: int = 0
    payload: bytes = b""


class _NoRecordError(ValueError):
    """An event that no record can say, and a message can: the host is to refuse it."""


def _xsetbv(event: Xsetbv) -> _Fields:
    if not 0 <= event.cpl <= _CPL_MAX:
        raise _NoRecordError
    return _Fields(6, event.cpl, event.index, event.value)


def _register_write(event: RegisterWrite) -> _Fields:
    if not 0 <= event.offset <= _U32:
        raise _NoRecordError
    return _Fields(10, 0, event.feature, event.offset, event.data)


def _register_read(event: RegisterRead) -> _Fields:
    if not (0 <= event.offset <= _U32 and 0 <= event.length <= _U32):
        raise _NoRecordError
    return _Fields(11, 0, event.feature, event.offset | event.length << 32)


#: By the type of an event; each function is given its own.
_FIELDS: Mapping[type, Callable[[Any], _Fields]] = {
    Enter: lambda event: _Fields(3, payload=event.task.encode()),
    Leave: lambda _event: _Fields(4),
    Preempt: lambda event: _Fields(5) if event.cpu is None else _Fields(5, 1, event.cpu),
    Xsetbv: _xsetbv,
    Wrmsr: lambda event: _Fields(7, 0, event.msr, event.value),
    Rdmsr: lambda event: _Fields(8, 0, event.msr),
    Nm: lambda event: _Fields(9, int(event.cr0_ts)),
    RegisterWrite: _register_write,
    RegisterRead: _register_read,
    Tile: lambda event: _Fields(12, TILE_OPS[event.op], event.tile, payload=event.memory),
    XfdSync: lambda event: _Fields(13, value=event.xfd),
    Init: lambda _event: _Fields(14),
    Hlt: lambda _event: _Fields(15),
    Xgetbv: lambda event: _Fields(16, 0, event.index),
    WriteCr4: lambda event: _Fields(17, value=event.value),
    Xsave: lambda event: _Fields(18, XSAVE_INSNS[event.insn], event.misaligned_by, event.rfbm, event.memory),
}


def pack_events(events: Sequence[NumberedEvent]) -> pb.PackedEvents | None:
    """Return events as records, or None where one of them fits no record."""
    ordinals: dict[str, int] = {}
    raw = bytearray()
    try:
        for vcpu, seq, event in events:
            kind, flags, arg, value, payload = _FIELDS[type(event)](event)
            ordinal = ordinals.setdefault(vcpu, len(ordinals))
            raw += _HEADER.pack(kind, flags, len(payload), ordinal, arg, seq, value)
            raw += payload
            raw += bytes(-len(payload) % 8)
    except (_NoRecordError, struct.error):
        return None
    return pb.PackedEvents(vcpus=ordinals, records=bytes(raw))


def numbered_batch(events: Sequence[NumberedEvent], *, received_through: Mapping[str, int]) -> pb.EventBatch:
    """Return a batch of events (none: it only says what was received), packed where that can be.

    Raises:
        ValueError: a number does not fit the wire.
    """
    packed = pack_events(events) if events else None
    if packed is None:
        messages = [event_to_proto(vcpu, seq, event) for vcpu, seq, event in events]
        return batch_to_proto(messages, received_through=received_through)
    batch = batch_to_proto((), received_through=received_through)
    batch.packed.CopyFrom(packed)
    return batch
