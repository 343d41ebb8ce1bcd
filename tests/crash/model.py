"""What a counting client reports as event number n, and what must come of it: pure functions of the number.

The session is explicit, so an event is legal on one side of the guest's door only:

    ENTER  WRITE  LEAVE  ENTER  READ  LEAVE  ENTER  WRITE ...

Whoever applies an event again finds the vCPU on the wrong side. A batch has an odd number of doors, so that one that is
applied twice as a whole is found out as well. WRITE loads 16 bytes that only its number explains into one of the XMM
registers, and READ, three events later, must find them.
"""

from __future__ import annotations

import hashlib
from typing import Final

from fpstate.v1 import event_pb2

from fpu_core.xfeature import XFEATURE_SSE

REGISTERS: Final = 16
REGISTER_BYTES: Final = 16
_CYCLE: Final = 6
#: Event 2 enables YMM, in place of the first WRITE.
_XSETBV_SEQ: Final = 2


def event(vcpu: str, seq: int) -> event_pb2.GuestEvent:
    """Event number ``seq`` of a vCPU."""
    made = event_pb2.GuestEvent(vcpu=vcpu, seq=seq)
    match seq % _CYCLE:
        case 1 | 4:
            made.enter.SetInParent()
        case 3 | 0:
            made.leave.SetInParent()
        case 2 if seq == _XSETBV_SEQ:
            made.xsetbv.value = 7
        case 2:
            made.register_write.feature = XFEATURE_SSE
            made.register_write.offset = _offset(seq)
            made.register_write.data = _content(vcpu, seq)
        case _:
            made.register_read.feature = XFEATURE_SSE
            made.register_read.offset = _offset(seq)
            made.register_read.length = REGISTER_BYTES
    return made


def batch(vcpu: str, first: int, at_least: int) -> list[event_pb2.GuestEvent]:
    """Events from ``first`` on: as many as wished, or a few more, so that the number of doors is odd."""
    events = [event(vcpu, first + nr) for nr in range(at_least)]
    while sum(_is_door(each.seq) for each in events) % 2 == 0:
        events.append(event(vcpu, events[-1].seq + 1))
    return events


def wrong(vcpu: str, outcome: event_pb2.EventOutcome) -> tuple[str, str] | None:
    """What an outcome shows to have gone wrong, as (how, text); None where it is what must come of its event."""
    seq = outcome.seq
    if not outcome.HasField("done"):
        how = "duplicated" if outcome.HasField("rejected") else "diverged"
        return how, f"{vcpu}: event {seq} came to {outcome.WhichOneof('outcome')}: {outcome.rejected.message}"
    if seq % _CYCLE == 5 and outcome.done.data != _content(vcpu, seq - 3):
        return "diverged", f"{vcpu}: event {seq} read {outcome.done.data.hex()}, not what event {seq - 3} wrote"
    return None


def registers(vcpu: str, through: int) -> bytes:
    """XMM0 to XMM15 after event ``through``."""
    content = bytearray(REGISTERS * REGISTER_BYTES)
    newest = through - (through - 2) % _CYCLE
    for seq in range(max(_XSETBV_SEQ + _CYCLE, newest - (REGISTERS - 1) * _CYCLE), newest + 1, _CYCLE):
        content[_offset(seq) : _offset(seq) + REGISTER_BYTES] = _content(vcpu, seq)
    return bytes(content)


def is_inside(through: int) -> bool:
    """Whether the vCPU is in the guest after event ``through``."""
    return through % 3 in (1, 2)


def _is_door(seq: int) -> bool:
    return seq % 3 != 2


def _offset(seq: int) -> int:
    return seq // _CYCLE % REGISTERS * REGISTER_BYTES


def _content(vcpu: str, seq: int) -> bytes:
    """Event 2 wrote nothing, and leaves zeros to be found."""
    if seq == _XSETBV_SEQ:
        return bytes(REGISTER_BYTES)
    return hashlib.blake2b(f"{vcpu}/{seq}".encode(), digest_size=REGISTER_BYTES).digest()
