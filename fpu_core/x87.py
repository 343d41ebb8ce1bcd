"""The x87 component: which of the 160 bytes of an image are registers, and which of their bits exist.

Loading and storing again does not give every byte back: an 80-bit register lies in 16 bytes, some bits of the control
word are fixed, and two bits of the status word follow from the others. MXCSR and its mask, bytes 24..31, are not x87
and are zero here.

Sources: Intel SDM vol. 1, 8.1.3, 8.1.5, 10.5.1 (the image); measured on a Zen 5.
"""

from __future__ import annotations

import struct
from typing import Final

from fpu_core.layout import XMM_SPACE_OFFSET
from fpu_core.silicon import Silicon

#: The x87 control word of the init state. SDM vol. 1, 13.6.
FCW_INIT: Final = 0x37F

#: Control word: bit 6 reads as 1; 7 and 13..15 read as 0.
_FCW_BITS: Final = 0x1F3F
_FCW_ONE: Final = 0x0040
#: Status word without ES and B, which say that an exception is pending that FCW does not mask.
_FSW_BITS: Final = 0x7F7F
_FSW_PENDING: Final = 0x8080
_EXCEPTIONS: Final = 0x3F
_FOP_BITS: Final = 0x7FF

_HEAD: Final = struct.Struct("<HHBxHQQ8x")  # FCW, FSW, abridged FTW, FOP, FIP, FDP, MXCSR and its mask
#: Where the eight registers start, 16 bytes apart, and what each of them has.
ST_SPACE_OFFSET: Final = _HEAD.size
ST_BYTES: Final = 10
_ST_BITS: Final = int.from_bytes((b"\xff" * ST_BYTES + bytes(16 - ST_BYTES)) * 8, "little")

#: The component in its init state.
X87_INIT: Final = _HEAD.pack(FCW_INIT, 0, 0, 0, 0, 0) + bytes(XMM_SPACE_OFFSET - ST_SPACE_OFFSET)


def x87_registers(image: bytes | bytearray | memoryview, silicon: Silicon) -> bytes:
    """Return the 160 bytes a save would store after ``image`` (160 bytes) was loaded."""
    fcw, fsw, ftw, fop, fip, fdp = _HEAD.unpack_from(image)
    fcw = fcw & _FCW_BITS | _FCW_ONE
    fsw &= _FSW_BITS
    pending = fsw & ~fcw & _EXCEPTIONS
    if pending:
        fsw |= _FSW_PENDING
    if silicon.x87_pointers_need_exception and not pending:
        fop = fip = fdp = 0
    elif silicon.x87_pointer_bits is not None:
        fip, fdp = (_sign_extended(pointer, silicon.x87_pointer_bits) for pointer in (fip, fdp))
    stack = int.from_bytes(image[ST_SPACE_OFFSET:], "little") & _ST_BITS
    return _HEAD.pack(fcw, fsw, ftw, fop & _FOP_BITS, fip, fdp) + stack.to_bytes(128, "little")


def _sign_extended(pointer: int, bits: int) -> int:
    low = pointer & (1 << bits) - 1
    return low | (0xFFFF_FFFF_FFFF_FFFF & -1 << bits if low >> bits - 1 else 0)
