"""Guest events as fixed little-endian records; the layout is documented at PackedEvents in event.proto.

A record that is cut short, out of range or badly padded refuses the whole message; one that is well formed but wrong
becomes a rejected event, as if it had been sent as a message.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from fpstate.v1 import event_pb2

from host_agent import events as e
from host_agent.service.errors import Failure, field_invalid
from host_agent.service.translate import event
from host_agent.service.translate.fields import vcpu_name

#: kind, flags, payload_bytes, vcpu_ordinal, arg, seq, value.
_HEADER: Final = struct.Struct("<HHIIIQQ")


class Record(NamedTuple):
    """One record, its parts where the layout has them; ``payload`` without its padding."""

    kind: int
    flags: int
    ordinal: int
    arg: int
    seq: int
    value: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Which parts of a record a kind uses, and how it is made from them; a part that is not used has to be zero."""

    flags: int = 0
    arg: bool = False
    value: bool = False
    payload: bool = False
    make: Callable[[str, str, Record], e.EventKind]


_U32: Final = 0xFFFF_FFFF

_LAYOUTS: Final[dict[int, tuple[str, _Layout]]] = {
    3: ("enter", _Layout(payload=True, make=lambda path, vcpu, r: event.enter(path, vcpu, _utf8(path, r.payload)))),
    4: ("leave", _Layout(make=lambda _path, _vcpu, _r: e.Leave())),
    5: ("preempt", _Layout(flags=1, arg=True, make=lambda _path, _vcpu, r: e.Preempt(r.arg if r.flags else None))),
    6: (
        "xsetbv",
        _Layout(
            flags=3,
            arg=True,
            value=True,
            make=lambda _path, _vcpu, r: e.Xsetbv(index=r.arg, value=r.value, cpl=r.flags),
        ),
    ),
    7: ("wrmsr", _Layout(arg=True, value=True, make=lambda _path, _vcpu, r: e.Wrmsr(r.arg, r.value))),
    8: ("rdmsr", _Layout(arg=True, make=lambda _path, _vcpu, r: e.Rdmsr(r.arg))),
    9: ("nm", _Layout(flags=1, make=lambda _path, _vcpu, r: e.Nm(bool(r.flags)))),
    10: (
        "register_write",
        _Layout(
            arg=True,
            value=True,
            payload=True,
            make=lambda path, _vcpu, r: event.register_write(path, feature=r.arg, offset=r.value, data=r.payload),
        ),
    ),
    11: (
        "register_read",
        _Layout(
            arg=True,
            value=True,
            make=lambda _path, _vcpu, r: e.RegisterRead(feature=r.arg, offset=r.value & _U32, length=r.value >> 32),
        ),
    ),
    12: (
        "tile",
        _Layout(
            flags=0xFF,
            arg=True,
            payload=True,
            make=lambda path, _vcpu, r: event.tile(path, op=r.flags, tile_nr=r.arg, memory=r.payload),
        ),
    ),
    13: ("xfd_sync", _Layout(value=True, make=lambda _path, _vcpu, r: e.XfdSync(r.value))),
    14: ("init", _Layout(make=lambda _path, _vcpu, _r: e.Init())),
    15: ("hlt", _Layout(make=lambda _path, _vcpu, _r: e.Hlt())),
    16: ("xgetbv", _Layout(arg=True, make=lambda _path, _vcpu, r: e.Xgetbv(r.arg))),
    17: ("write_cr4", _Layout(value=True, make=lambda _path, _vcpu, r: e.WriteCr4(r.value))),
    18: (
        "xsave",
        _Layout(
            flags=0xFF,
            arg=True,
            value=True,
            payload=True,
            make=lambda path, _vcpu, r: event.xsave(
                path, insn=r.flags, rfbm=r.value, misaligned_by=r.arg, memory=r.payload
            ),
        ),
    ),
}


def decode(path: str, packed: event_pb2.PackedEvents) -> list[tuple[str, int, e.GuestEvent | Failure]]:
    """Return (vCPU, number, event or why it is rejected) per record. Raises ``Failure`` for a malformed message."""
    vcpus = [vcpu_name(f"{path}.vcpus[{nr}]", name) for nr, name in enumerate(packed.vcpus)]
    if len(set(vcpus)) != len(vcpus):
        raise field_invalid(f"{path}.vcpus", "each vCPU once", ", ".join(vcpus))
    return quick(vcpus, packed.records) or careful(path, vcpus, packed.records)


def quick(vcpus: Sequence[str], raw: bytes) -> list[tuple[str, int, e.GuestEvent | Failure]] | None:
    """What ``careful`` returns where nothing is wrong; None where something is, which that has to say."""
    found: list[tuple[str, int, e.GuestEvent | Failure]] = []
    at = 0
    unpack, header_bytes = _HEADER.unpack_from, _HEADER.size
    try:
        while at < len(raw):
            kind, flags, size, ordinal, arg, seq, value = unpack(raw, at)
            at += header_bytes
            vcpu = vcpus[ordinal]
            if not size:
                made = _without_payload(kind, flags, arg, value)
            else:
                begin, at = at, at + _padded(size)
                if at > len(raw) or any(raw[begin + size : at]) or not _is_usable(kind, flags, bool(arg), bool(value)):
                    return None
                record = Record(kind, flags, ordinal, arg, seq, value, raw[begin : begin + size])
                made = _LAYOUTS[kind][1].make("", vcpu, record)
            if made is None or not seq:
                return None
            found.append((vcpu, seq, e.GuestEvent(vcpu, seq, made)))
    except (struct.error, IndexError, Failure):
        return None
    return found


@lru_cache(maxsize=4096)
def _without_payload(kind: int, flags: int, arg: int, value: int) -> e.EventKind | None:
    """The kind of a record, None where something is wrong with it. Guests write few values, again and again."""
    record = Record(kind, flags, 0, arg, 1, value, b"")
    try:
        _check("", record, 1)
        return _LAYOUTS[kind][1].make("", "", record)
    except Failure:
        return None


@lru_cache(maxsize=4096)
def _is_usable(kind: int, flags: int, arg: bool, value: bool) -> bool:  # noqa: FBT001
    """Whether a kind takes a payload with these flags, and an argument or a value that is not zero."""
    try:
        _check("", Record(kind, flags, 0, int(arg), 1, int(value), b"."), 1)
    except Failure:
        return False
    return True


def careful(path: str, vcpus: Sequence[str], raw: bytes) -> list[tuple[str, int, e.GuestEvent | Failure]]:
    """Read one record after the other and name what is wrong. Raises ``Failure`` for a malformed message."""
    records = list(_records(f"{path}.records", raw))
    for nr, record in enumerate(records):
        _check(f"{path}.records[{nr}]", record, len(vcpus))
    return [_event(f"{path}.records[{nr}]", record, vcpus[record.ordinal]) for nr, record in enumerate(records)]


def _records(path: str, raw: bytes) -> Iterator[Record]:
    """Cut the bytes into records."""
    at = nr = 0
    while at < len(raw):
        if len(raw) - at < _HEADER.size:
            raise field_invalid(f"{path}[{nr}]", f"a header of {_HEADER.size} bytes", f"{len(raw) - at} bytes")
        kind, flags, payload_bytes, ordinal, arg, seq, value = _HEADER.unpack_from(raw, at)
        begin = at + _HEADER.size
        end, at = begin + payload_bytes, begin + _padded(payload_bytes)
        if at > len(raw):
            raise field_invalid(
                f"{path}[{nr}].payload_bytes", f"at most {len(raw) - begin} with padding", payload_bytes
            )
        if any(raw[end:at]):
            raise field_invalid(f"{path}[{nr}]", "padding of zero bytes", raw[end:at].hex())
        yield Record(kind, flags, ordinal, arg, seq, value, raw[begin:end])
        nr += 1


def _padded(payload_bytes: int) -> int:
    return (payload_bytes + 7) & ~7


def _check(path: str, record: Record, vcpus: int) -> None:
    """Refuse a record that says what its kind cannot say."""
    if record.kind not in _LAYOUTS:
        raise field_invalid(f"{path}.kind", "one of " + ", ".join(map(str, _LAYOUTS)), record.kind)
    if record.ordinal >= vcpus:
        raise field_invalid(f"{path}.vcpu_ordinal", f"below {vcpus}, the number of vcpus", record.ordinal)
    if record.seq == 0:
        raise field_invalid(f"{path}.seq", "a number from 1", 0)
    _, layout = _LAYOUTS[record.kind]
    unused = {
        "flags": record.flags & ~layout.flags,
        "arg": 0 if layout.arg else record.arg,
        "value": 0 if layout.value else record.value,
        "payload_bytes": 0 if layout.payload else len(record.payload),
    }
    for name, bits in unused.items():
        if bits:
            raise field_invalid(f"{path}.{name}", "0 in what this kind does not use", hex(bits))


def _event(path: str, record: Record, vcpu: str) -> tuple[str, int, e.GuestEvent | Failure]:
    name, layout = _LAYOUTS[record.kind]
    try:
        return vcpu, record.seq, e.GuestEvent(vcpu, record.seq, layout.make(f"{path}.{name}", vcpu, record))
    except Failure as failure:
        return vcpu, record.seq, failure


def _utf8(path: str, payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise field_invalid(f"{path}.task", "UTF-8", payload) from error


def encode(vcpus: Sequence[str], records: Sequence[Record]) -> event_pb2.PackedEvents:
    """Build the message: what ``decode`` reads back. ``Record.ordinal`` counts in ``vcpus``."""
    raw = bytearray()
    for each in records:
        size = len(each.payload)
        raw += _HEADER.pack(each.kind, each.flags, size, each.ordinal, each.arg, each.seq, each.value)
        raw += each.payload + bytes(_padded(size) - size)
    return event_pb2.PackedEvents(vcpus=vcpus, records=bytes(raw))
