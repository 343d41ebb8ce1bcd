"""What a context's registers are, read where they are: in the CPU, or in an image by its own header."""

from __future__ import annotations

from fpu_core.config import FpuConfig
from fpu_core.cpu import Cpu
from fpu_core.fpstate import MXCSR_INIT, Fpstate
from fpu_core.layout import MXCSR_OFFSET
from fpu_core.xfeature import XCOMP_BV_COMPACTED_FORMAT, XFEATURE_MASK_SSE, for_each_set_bit


def in_registers(cpu: Cpu) -> tuple[dict[int, bytes], int]:
    """Return component -> bytes, and MXCSR, as software on ``cpu`` would see them."""
    return cpu.observable(), cpu.mxcsr


def in_image(config: FpuConfig, fpstate: Fpstate) -> tuple[dict[int, bytes], int]:
    """Decode an image by its own header, as XRSTORS would."""
    compacted = bool(fpstate.xcomp_bv & XCOMP_BV_COMPACTED_FORMAT)
    mask = fpstate.xcomp_bv & ~XCOMP_BV_COMPACTED_FORMAT if compacted else fpstate.xfeatures
    offsets = config.table.offsets(mask, compacted=compacted)
    image = fpstate.image()
    found = {}
    for nr in for_each_set_bit(fpstate.xstate_bv):
        found[nr] = image[offsets[nr] : offsets[nr] + config.table.size_bytes(nr)]
    has_mxcsr = not compacted or fpstate.xstate_bv & XFEATURE_MASK_SSE
    mxcsr = int.from_bytes(image[MXCSR_OFFSET : MXCSR_OFFSET + 4], "little") if has_mxcsr else MXCSR_INIT
    return found, mxcsr
