"""A userspace buffer of XSAVE state as a scenario shows and edits it."""

from __future__ import annotations

import struct

from fpu_core.config import FpuConfig
from fpu_core.fpstate import MXCSR_INIT
from fpu_core.layout import MXCSR_OFFSET, XCOMP_BV_OFFSET, XSTATE_BV_OFFSET
from fpu_core.xfeature import XFEATURE_NAMES, for_each_set_bit, format_mask
from tests.scenarios.block import ScenarioError
from tests.scenarios.operands import FEATURES, Patterns, mask, number, span

_WORDS = {"xstate_bv": XSTATE_BV_OFFSET, "xcomp_bv": XCOMP_BV_OFFSET}


def describe(config: FpuConfig, patterns: Patterns, buf: bytes) -> str:
    """Its size, and each component that XSTATE_BV has by the name it was loaded under."""
    if not any(buf):
        return f"{len(buf)} B: zeros"
    (bv,) = struct.unpack_from("<Q", buf, XSTATE_BV_OFFSET)
    held = []
    for nr in for_each_set_bit(bv):
        component = config.table.components.get(nr)
        if component is None or component.std_offset is None:
            held.append(f"{format_mask(1 << nr)}=?")
        elif component.std_offset + component.size_bytes > len(buf):
            held.append(f"{XFEATURE_NAMES[nr]}=cut off")
        else:
            raw = buf[component.std_offset : component.std_offset + component.size_bytes]
            held.append(f"{XFEATURE_NAMES[nr]}={patterns.describe(nr, raw)}")
    mxcsr = int.from_bytes(buf[MXCSR_OFFSET : MXCSR_OFFSET + 4], "little")
    if mxcsr != MXCSR_INIT:
        held.append(f"MXCSR={mxcsr:#x}")
    return f"{len(buf)} B: {'; '.join(held) or 'all in init state'}"


def edited(config: FpuConfig, patterns: Patterns, buf: bytes, field: str, value: str) -> bytes:
    """Return the buffer with one thing changed.

    ``xstate_bv=MASK``, ``xcomp_bv=MASK``, ``mxcsr=N``, ``size=N`` (cut, or zeros behind), ``byte600=N``, or a
    component by its name: ``SSE=pattern`` writes its bytes and leaves XSTATE_BV alone.
    """
    raw = bytearray(buf)
    if field in _WORDS:
        struct.pack_into("<Q", raw, _WORDS[field], mask(value))
    elif field == "mxcsr":
        struct.pack_into("<I", raw, MXCSR_OFFSET, number(value))
    elif field == "size":
        return bytes(raw[: number(value)].ljust(number(value), b"\0"))
    elif field.startswith("byte"):
        raw[number(field.removeprefix("byte"))] = number(value)
    elif field in FEATURES and FEATURES[field] in config.table.components:
        _load(config, patterns, raw, FEATURES[field], value)
    else:
        raise ScenarioError(f"edit: expected xstate_bv, xcomp_bv, mxcsr, size, byteN or a component, got {field!r}")
    return bytes(raw)


def _load(config: FpuConfig, patterns: Patterns, raw: bytearray, nr: int, pattern: str) -> None:
    component = config.table.components[nr]
    offset, length = span(nr, component.size_bytes)
    if component.std_offset is None or component.std_offset + offset + length > len(raw):
        raise ScenarioError(f"edit: {XFEATURE_NAMES[nr]} has no place in a buffer of {len(raw)} B")
    start = component.std_offset + offset
    raw[start : start + length] = patterns.bytes_of(pattern, length)
