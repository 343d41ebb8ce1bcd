"""Fpstate, the container: a register image together with everything that belongs to it.

The founding mail's point is that a buffer is useless without its sizes, its features and its XFD, so what is swapped is
this object, by reference, and never field by field. ``fpstate.xfd`` is the one truth about XFD; the modelled register
and its cache are written from it.

The image is real bytes in the layout that ``xcomp_bv`` describes. Of its header the two words that every swap looks at,
XSTATE_BV and XCOMP_BV, are held unpacked; ``image()`` puts them back where the processor has them.

Source: arch/x86/include/asm/fpu/types.h, struct fpstate; arch/x86/kernel/fpu/core.c, __fpstate_reset().
"""

from __future__ import annotations

import struct
from typing import Final

from fpu_core.config import FpuConfig
from fpu_core.layout import MXCSR_OFFSET, XCOMP_BV_OFFSET, XSTATE_BV_OFFSET
from fpu_core.x87 import FCW_INIT
from fpu_core.xfeature import XCOMP_BV_COMPACTED_FORMAT, format_mask

#: MXCSR of the init state. SDM vol. 1, 13.6.
MXCSR_INIT: Final = 0x1F80

#: What the container itself takes in front of the image: the kernel aligns ``regs`` to 64 bytes.
FPSTATE_HEADER_BYTES: Final = 64

_U64: Final = struct.Struct("<Q")


class _SwapFields:
    """What every swap looks at. A base class, because its slots come first: one cache line holds them all."""

    __slots__ = ("in_use", "is_confidential", "xfd", "xstate_bv")


class Fpstate(_SwapFields):
    """The container. All sizes in bytes, all masks unsigned 64-bit xfeature masks."""

    __slots__ = ("is_guest", "is_valloc", "regs", "size", "user_size", "user_xfeatures", "xcomp_bv", "xfeatures")

    def __init__(
        self, *, regs: bytearray, size: int, user_size: int, xfeatures: int, user_xfeatures: int, xfd: int
    ) -> None:
        #: Bytes of the kernel image the container can hold; at least what ``xfeatures`` need.
        self.size = size
        #: Bytes of the same state in the user (standard) format.
        self.user_size = user_size
        #: The components the image has room for: the RFBM of every save.
        self.xfeatures = xfeatures
        #: Those of them a user-format image may carry. Only grows.
        self.user_xfeatures = user_xfeatures
        #: The context's XFD: authoritative. Only realloc, guest XFD writes and the VM exit sync change it.
        self.xfd = xfd
        #: XSTATE_BV of the image's header: components that are not in their init state.
        self.xstate_bv = 0
        #: XCOMP_BV of the image's header: which components the layout has; 0 in the standard format.
        self.xcomp_bv = 0
        #: The memory was taken from the allocator and must go back to it.
        self.is_valloc = False
        #: Belongs to an FpuGuest.
        self.is_guest = False
        #: Registers belong to the firmware (SEV-ES, TDX): neither saved nor restored by a swap; XFD still is switched.
        self.is_confidential = False
        #: Swapped in. Set by swap-in, cleared by swap-out, copied by realloc.
        self.in_use = False
        #: The image, ``size`` bytes; header words 512..527 are held in ``xstate_bv`` and ``xcomp_bv``.
        self.regs = regs

    def image(self) -> bytes:
        """Return the image as the processor would have it in memory, header included."""
        out = bytearray(self.regs)
        if len(out) > XCOMP_BV_OFFSET:
            _U64.pack_into(out, XSTATE_BV_OFFSET, self.xstate_bv)
            _U64.pack_into(out, XCOMP_BV_OFFSET, self.xcomp_bv)
        return bytes(out)

    @property
    def allocated_bytes(self) -> int:
        """What the container costs the allocator: image and header."""
        return self.size + FPSTATE_HEADER_BYTES

    def __repr__(self) -> str:
        kind = "guest" if self.is_guest else "task"
        flags = "".join(f" {flag}" for flag in ("in_use", "is_confidential") if getattr(self, flag))
        return f"<Fpstate {kind} {self.size}B {format_mask(self.xfeatures)} xfd={format_mask(self.xfd)}{flags}>"


def fpstate_init_user(fpstate: Fpstate, config: FpuConfig) -> None:
    """Put the image into its init state. Source: core.c, fpstate_init_user()."""
    fpstate.xstate_bv = 0
    fpstate_init_layout(fpstate, config)
    if config.caps.FXSR:
        struct.pack_into("<H", fpstate.regs, 0, FCW_INIT)
        struct.pack_into("<I", fpstate.regs, MXCSR_OFFSET, MXCSR_INIT)


def fpstate_init_layout(fpstate: Fpstate, config: FpuConfig) -> None:
    """Write XCOMP_BV for the container's features: without it XRSTORS takes #GP. Source: xstate_init_xcomp_bv()."""
    fpstate.xcomp_bv = shared_mask(fpstate.xfeatures | XCOMP_BV_COMPACTED_FORMAT) if config.compacted else 0


def image_offsets(fpstate: Fpstate, config: FpuConfig) -> dict[int, int]:
    """Return where each component lies in the image: asked of its own XCOMP_BV, never of a global table (bug B8)."""
    if fpstate.xcomp_bv & XCOMP_BV_COMPACTED_FORMAT:
        return config.table.offsets(fpstate.xcomp_bv & ~XCOMP_BV_COMPACTED_FORMAT, compacted=True)
    return config.table.offsets(fpstate.xfeatures, compacted=False)


def fpstate_clear_xstate_component(fpstate: Fpstate, config: FpuConfig, nr: int) -> None:
    """Zero component ``nr`` in an image that is in memory, if the image has it at all; XSTATE_BV stays as it is.

    Source: xstate.c, fpstate_clear_xstate_component().
    """
    if fpstate.xstate_bv >> nr & 1:
        size = config.table.size_bytes(nr)
        at = image_offsets(fpstate, config)[nr]
        fpstate.regs[at : at + size] = bytes(size)


_MASKS: dict[int, int] = {}


def shared_mask(mask: int) -> int:
    """Return the one int object of this value: a hundred thousand containers would otherwise each keep their own."""
    return _MASKS.setdefault(mask, mask)


def task_fpstate(config: FpuConfig) -> Fpstate:
    """Return the container embedded in a new task: default features, every dynamic feature disabled.

    Its memory is part of the task, so the allocator is not asked. Source: core.c, fpstate_reset().
    """
    fpstate = Fpstate(
        regs=bytearray(config.kernel.default_size),
        size=config.kernel.default_size,
        user_size=config.user.default_size,
        xfeatures=config.kernel.default_features,
        user_xfeatures=config.user.default_features,
        xfd=config.init_xfd,
    )
    fpstate_init_user(fpstate, config)
    return fpstate


def guest_fpstate(config: FpuConfig, regs: bytearray) -> Fpstate:
    """Return a guest's default container over freshly allocated ``regs``: XFD is 0, the architectural reset value.

    Source: core.c, __guest_fpstate_reset() and fpu_alloc_guest_fpstate().
    """
    fpstate = Fpstate(
        regs=regs,
        size=config.guest_default_size,
        user_size=config.user.default_size,
        xfeatures=config.guest_default_features,
        user_xfeatures=config.user.default_features,
        xfd=0,
    )
    fpstate.is_valloc = True
    fpstate.is_guest = True
    fpstate_init_user(fpstate, config)
    return fpstate
