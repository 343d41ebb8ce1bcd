"""Acts of signals and debuggers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from fault_lab.sim.hand import Act, Hand
from fault_lab.sim.task_books import RESERVED_BYTES, RESERVED_OFFSET, SAID_SIZE_OFFSET
from fpu_core.fpstate import MXCSR_INIT
from fpu_core.layout import MXCSR_OFFSET, XSAVE_EXTENDED_OFFSET, XSTATE_BV_OFFSET
from fpu_core.xfeature import (
    XFEATURE_MASK_PKRU,
    XFEATURE_PKRU,
    for_each_set_bit,
)
from host_agent import task_commands as t

_U64: Final = struct.Struct("<Q")
_U32: Final = struct.Struct("<I")


def _signal(hand: Hand) -> Act:
    task = hand.draws.one_of(hand.tasks())
    if len(task.frames) < 3:
        yield t.DeliverSignal(task=hand.name(task), altstack=not hand.draws.below(4))


def _lie_in_frame(hand: Hand) -> Act:
    task = hand.handler()
    if task is not None:
        size = XSAVE_EXTENDED_OFFSET + 8 * hand.draws.below(64)
        yield t.EditFrame(task=hand.name(task), offset=SAID_SIZE_OFFSET, data=_U32.pack(size))


def _spoil_frame(hand: Hand) -> Act:
    task = hand.handler()
    if task is not None:
        yield t.EditFrame(task=hand.name(task), offset=RESERVED_OFFSET + hand.draws.below(RESERVED_BYTES), data=b"\x01")


def _swap_out(hand: Hand) -> Act:
    task = hand.handler()
    if task is not None:
        yield t.SwapOutFrame(task=hand.name(task), offset=hand.draws.below(task.fpu.fpstate.user_size))


def _sigreturn(hand: Hand) -> Act:
    task = hand.handler()
    if task is not None:
        yield t.SigReturn(task=hand.name(task))


def _ptraced(hand: Hand, change: Callable[[bytearray], bytes]) -> Act:
    """Read everything, change something, write it back."""
    task = hand.draws.one_of(hand.tasks())
    raw = yield t.PtraceGet(task=hand.name(task), length=hand.record.platform.host.config.user.max_size + 7 & -8)
    if isinstance(raw, bytes) and len(raw) > XSAVE_EXTENDED_OFFSET:
        buf = bytearray(raw)
        # What an image says of MXCSR is old where SSE is in its init state: docs/findings.md.
        _U32.pack_into(buf, MXCSR_OFFSET, MXCSR_INIT)
        yield t.PtraceSet(task=hand.name(task), data=change(buf))


def _ptrace(hand: Hand) -> Act:
    config = hand.record.platform.host.config
    nr = hand.draws.one_of(
        [nr for nr in for_each_set_bit(config.user.default_features) if nr not in (0, XFEATURE_PKRU)]
    )

    def change(raw: bytearray) -> bytes:
        at, size = config.table.offset(config.user.max_features, nr, compacted=False), config.table.size_bytes(nr)
        raw[at : at + size] = hand.draws.bytes(size)
        return _with_bits(raw, 1 << nr)

    yield from _ptraced(hand, change)


def _ptrace_pkru(hand: Hand) -> Act:
    config = hand.record.platform.host.config

    def change(raw: bytearray) -> bytes:
        at = config.table.offset(config.user.max_features, XFEATURE_PKRU, compacted=False)
        raw[at : at + 4] = hand.draws.bytes(4)
        return _with_bits(raw, XFEATURE_MASK_PKRU)

    if config.has_pkru:
        yield from _ptraced(hand, change)


def _ptrace_part(hand: Hand) -> Act:
    part = XSAVE_EXTENDED_OFFSET + 8 * hand.draws.below(200)
    yield from _ptraced(hand, lambda raw: bytes(raw[:part]) if part < len(raw) else bytes(raw[:-8]))


def _with_bits(raw: bytearray, bits: int) -> bytes:
    (bv,) = _U64.unpack_from(raw, XSTATE_BV_OFFSET)
    _U64.pack_into(raw, XSTATE_BV_OFFSET, bv | bits)
    return bytes(raw)


#: By their names in ``fault_lab.plan.acts``.
PLAYED: Final[dict[str, Callable[[Hand], Act]]] = {
    "signal": _signal,
    "lie-in-frame": _lie_in_frame,
    "spoil-frame": _spoil_frame,
    "swap-out": _swap_out,
    "sigreturn": _sigreturn,
    "ptrace": _ptrace,
    "ptrace-pkru": _ptrace_pkru,
    "ptrace-part": _ptrace_part,
}
