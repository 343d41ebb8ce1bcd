"""A record: one command, when it was carried out, and what came of it. Chained, so that a hole or a change is found.

    offset  size
    0       1     form of the record, 1
    1       2     version of the rules that made the outcome
    3       8     revision of the host after the command
    11      8     time of the command, nanoseconds on the host's clock
    19      4     length of the command, C
    23      4     length of the outcome, O
    27      C     command: ``host_agent.journal.command``
    27+C    O     outcome: ``host_agent.journal.outcome``
    27+C+O  4     CRC-32 of everything before, begun with the CRC of the record before (0 before the first)

Little endian. The record's number is its key in the store: 1, 2, 3, ... without a hole. Several records may have one
revision, since what was refused is recorded too and changes none.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

FORM: Final = 1
#: Raised when the same command may have another outcome, or a text form of one has changed.
RULES_VERSION: Final = 3

_HEAD: Final = struct.Struct("<BHQQII")
_CRC: Final = struct.Struct("<I")


class BadRecordError(ValueError):
    """Bytes that are no record, or not the one that follows the record before. The text says why."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record, read. ``crc`` is what the next one is chained to."""

    rules: int
    revision: int
    now_ns: int
    command: bytes
    outcome: bytes
    crc: int


def pack_record(previous_crc: int, revision: int, now_ns: int, command: bytes, outcome: bytes) -> tuple[bytes, int]:
    """Return the bytes of a record and its CRC."""
    head = _HEAD.pack(FORM, RULES_VERSION, revision, now_ns, len(command), len(outcome))
    body = b"".join((head, command, outcome))
    crc = zlib.crc32(body, previous_crc)
    return body + _CRC.pack(crc), crc


def unpack_record(raw: bytes, previous_crc: int) -> Record:
    """Read a record that follows the one with ``previous_crc``. Raises ``BadRecordError``."""
    if len(raw) < _HEAD.size + _CRC.size:
        raise BadRecordError(f"{len(raw)} bytes are no record")
    form, rules, revision, now_ns, command_len, outcome_len = _HEAD.unpack_from(raw)
    end = _HEAD.size + command_len + outcome_len
    if len(raw) != end + _CRC.size:
        raise BadRecordError(f"{len(raw)} bytes, where its lengths say {end + _CRC.size}")
    (crc,) = _CRC.unpack_from(raw, end)
    if crc != zlib.crc32(memoryview(raw)[:end], previous_crc):
        raise BadRecordError("its checksum does not fit it and the record before")
    if form != FORM:
        raise BadRecordError(f"form {form}, where this release reads {FORM}")
    middle = _HEAD.size + command_len
    return Record(rules, revision, now_ns, raw[_HEAD.size : middle], raw[middle:end], crc)
