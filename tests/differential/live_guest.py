"""The guest code of live-kvm, ``live_guest.S``: where it is, and what its ring-3 routines leave in the registers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from fpu_core.layout import MXCSR_OFFSET
from fpu_core.xfeature import (
    XFEATURE_FP,
    XFEATURE_MASK_AVX512,
    XFEATURE_MASK_FP,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_YMM,
    XFEATURE_OPMASK,
    XFEATURE_SSE,
    XFEATURE_YMM,
    XFEATURE_Hi16_ZMM,
    XFEATURE_ZMM_Hi256,
)

#: Built from live_guest.S by tools/build_guest.py: eight-byte addresses of its labels, then the code.
IMAGE: Final = Path(__file__).with_name("live_guest.bin").read_bytes()
IMAGE_AT: Final = 0x10000
KERNEL_STACK: Final = 0x20000
SOURCE_AT: Final = 0x30000
PORT_DONE: Final = 0xE0
PORT_GP: Final = 0xE1

#: The routines in the order of the image, and the components each of them loads.
ROUTINES: Final[dict[str, int]] = {
    "load_x87": XFEATURE_MASK_FP,
    "load_sse": XFEATURE_MASK_FPSSE,
    "load_avx": XFEATURE_MASK_FPSSE | XFEATURE_MASK_YMM,
    "load_avx512": XFEATURE_MASK_FPSSE | XFEATURE_MASK_YMM | XFEATURE_MASK_AVX512,
}

#: The labels in the order of the image.
_LABELS: Final = ("done", "gp", "write_xcr", *ROUTINES)
_SOURCE_BYTES: Final = 2256
_OPMASK_AT, _MXCSR_AT, _FCW_AT, _ST_AT = 2048, 2112, 2116, 2128


def address(label: str) -> int:
    """Where a label of live_guest.S is: a gate, ``write_xcr`` or a routine."""
    nr = _LABELS.index(label)
    return int.from_bytes(IMAGE[8 * nr : 8 * nr + 8], "little")


def random_source(rng: random.Random, *, mxcsr: int) -> bytes:
    """What a routine loads from: random but for MXCSR and a control word that masks every exception."""
    raw = bytearray(rng.randbytes(_SOURCE_BYTES))
    raw[_MXCSR_AT : _MXCSR_AT + 4] = mxcsr.to_bytes(4, "little")
    raw[_FCW_AT : _FCW_AT + 2] = (rng.getrandbits(16) & 0x1F00 | 0x7F).to_bytes(2, "little")
    return bytes(raw)


def register_writes(routine: str, source: bytes, *, xcr0: int) -> list[tuple[int, int, bytes]]:
    """What a routine leaves in the registers of a guest with this XCR0: (feature, offset, bytes)."""
    if routine == "load_x87":
        # FCW, FSW with TOP = 0, every register in use, and no pointers: nothing has raised an exception.
        head = source[_FCW_AT : _FCW_AT + 2] + bytes(2) + b"\xff" + bytes(19)
        stack = b"".join(source[_ST_AT + 16 * nr : _ST_AT + 16 * nr + 10] + bytes(6) for nr in range(8))
        return [(XFEATURE_FP, 0, head), (XFEATURE_FP, 32, stack)]
    zmm = [source[64 * nr : 64 * nr + 64] for nr in range(32)]
    mxcsr = (XFEATURE_FP, MXCSR_OFFSET, source[_MXCSR_AT : _MXCSR_AT + 4])
    writes = [mxcsr, (XFEATURE_SSE, 0, b"".join(each[:16] for each in zmm[:16]))]
    if routine != "load_sse":
        writes.append((XFEATURE_YMM, 0, b"".join(each[16:32] for each in zmm[:16])))
    if routine == "load_avx" and xcr0 & XFEATURE_MASK_AVX512:
        writes.append((XFEATURE_ZMM_Hi256, 0, bytes(512)))  # VEX clears what lies above
    if routine == "load_avx512":
        writes.append((XFEATURE_OPMASK, 0, source[_OPMASK_AT:_MXCSR_AT]))
        writes.append((XFEATURE_ZMM_Hi256, 0, b"".join(each[32:] for each in zmm[:16])))
        writes.append((XFEATURE_Hi16_ZMM, 0, b"".join(zmm[16:])))
    return writes
