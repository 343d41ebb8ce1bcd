"""Registers in a signal frame: how they get there, what a handler starts with, and how sigreturn takes them back.

    copy_fpstate_to_sigframe   XSAVE into user memory, then what tells a program how to read it
    fpu_clear_user_states      the handler starts with init registers and the default PKRU
    fpu_restore_sig            XRSTOR from user memory, which the program may have written anything into

A frame is ``user_size`` bytes in the standard format at a 64-byte boundary, and a magic word. Of the 64-bit frame only:
the 32-bit one has an FSAVE area in front and is restored through the kernel's image.

Sources: arch/x86/kernel/fpu/signal.c; core.c, fpu__clear_user_states(); xstate.h, xsave_to_user_sigframe().
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from fpu_core.altstack import FP_XSTATE_MAGIC2_BYTES
from fpu_core.context import (
    fpregs_mark_activate,
    fpregs_restore_userregs,
    fpregs_state_valid,
    running_cpu,
    xstate_op_valid,
)
from fpu_core.cpu import Cpu, Vector
from fpu_core.errors import CoreBug, core_assert
from fpu_core.fpstate import Fpstate
from fpu_core.fpu import Fpu
from fpu_core.layout import FXSAVE_SIZE_BYTES, XSAVE_EXTENDED_OFFSET, XSTATE_BV_OFFSET
from fpu_core.sched import read_pkru, set_task_pkru
from fpu_core.usermem import UserMemory
from fpu_core.xfeature import (
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_PKRU,
    XFEATURE_MASK_SUPERVISOR_SUPPORTED,
    XFEATURE_MASK_USER_RESTORE,
    XFEATURE_MASK_XTILE,
    XFEATURE_PKRU,
)
from fpu_core.xsave import fxrstor, fxsave, xrstor
from fpu_core.xsave_insn import MemoryImage, XsaveInsn, loaded_component_ends, xrstor_from_memory, xsave_to_memory

FP_XSTATE_MAGIC1: Final = 0x4650_5853
FP_XSTATE_MAGIC2: Final = 0x4650_5845
#: struct _fpx_sw_bytes in the legacy region: magic1, extended_size, xfeatures, xstate_size, padding; 48 bytes.
SW_BYTES_OFFSET: Final = 464
_SW_BYTES: Final = struct.Struct("<IIQI28x")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
#: Components that are left out of a frame while they are in their init state, so that it need not be touched there.
_SIGFRAME_INITOPT: Final = XFEATURE_MASK_XTILE
_FRAME_ALIGN: Final = 64
_FXSAVE_ALIGN: Final = 16


def sigframe_size(fpu: Fpu) -> int:
    """xstate_sigframe_size(): the bytes of the register part of this task's frame."""
    return fpu.fpstate.user_size + (FP_XSTATE_MAGIC2_BYTES if fpu.host.config.xsave else 0)


def alloc_mathframe(fpu: Fpu, sp: int) -> int:
    """Return where the frame goes below stack pointer ``sp``. Source: fpu__alloc_mathframe()."""
    return (sp - sigframe_size(fpu)) & -_FRAME_ALIGN


# -- into the frame ----------------------------------------------------------------------------------------------------


def copy_fpstate_to_sigframe(fpu: Fpu, memory: UserMemory, address: int, pkru: int) -> bool:
    """Save the registers into the frame at ``address``; False where it is not all mapped.

    ``pkru`` is what the frame shall say: the register itself has been opened, so that the frame can be written.
    """
    config = fpu.host.config
    if not memory.mapped(address, sigframe_size(fpu)):
        return False
    if config.xsave:
        memory.copy_to_user(address + XSTATE_BV_OFFSET, bytes(XSAVE_EXTENDED_OFFSET - XSTATE_BV_OFFSET))
    while not _copy_fpregs(fpu, memory, address, pkru):
        # Clearing is also what faults the pages in: as many as the kernel's own record of the size says.
        memory.copy_to_user(address, bytes(fpu.fpstate.user_size))
    _save_xstate_epilog(fpu, memory, address)
    return True


def _copy_fpregs(fpu: Fpu, memory: UserMemory, address: int, pkru: int) -> bool:
    """One attempt with page faults disabled; False if there was one."""
    cpu = running_cpu(fpu)
    if fpu.need_load:
        fpregs_restore_userregs(fpu)
    config, fpstate = cpu.config, fpu.fpstate
    mask = fpstate.user_xfeatures
    if config.has_xfd:
        mask &= (cpu.xcr0 & cpu.xinuse) | ~_SIGFRAME_INITOPT
    size = config.user_size(mask) if config.xsave else fpstate.user_size
    if memory.readable_bytes(address, size) < size:
        return False
    core_assert(xstate_op_valid(cpu, fpu, fpstate, mask), f"save of {fpstate} to user memory: XFD and space disagree")
    cpu.counters.saves += 1
    start = address - memory.base
    image = memory.data[start : start + size]
    if config.xsave:
        core_assert(xsave_to_memory(cpu, XsaveInsn.XSAVE, image, mask, address=address) is None, "XSAVE faults")
        _update_pkru_in_sigframe(cpu, image, mask, pkru)
    else:
        fxsave(cpu, _LegacyImage(image))
    memory.data[start : start + size] = image
    cpu.interrupt_point()
    return True


def _update_pkru_in_sigframe(cpu: Cpu, image: bytearray, mask: int, pkru: int) -> None:
    """The frame has the PKRU of the interrupted program, and says so even where that is the init value (bug B26).

    XSTATE_BV is only of components that were written (bug B27).
    """
    if cpu.config.has_pkru:
        _U64.pack_into(image, XSTATE_BV_OFFSET, (mask & cpu.xcr0 & cpu.xinuse) | XFEATURE_MASK_PKRU)
        _U32.pack_into(image, cpu.config.table.offset(mask, XFEATURE_PKRU, compacted=False), pkru)


def _save_xstate_epilog(fpu: Fpu, memory: UserMemory, address: int) -> None:
    """The software bytes, all 48 of them (bug B28), the second magic word, and x87 and SSE marked as in use.

    The marks are for old programs that change x87 or XMM in the frame and know of no XSTATE_BV.
    """
    fpstate = fpu.fpstate
    extended = fpstate.user_size + FP_XSTATE_MAGIC2_BYTES
    sw_bytes = _SW_BYTES.pack(FP_XSTATE_MAGIC1, extended, fpstate.user_xfeatures, fpstate.user_size)
    memory.copy_to_user(address + SW_BYTES_OFFSET, sw_bytes)
    if fpu.host.config.xsave:
        memory.copy_to_user(address + fpstate.user_size, _U32.pack(FP_XSTATE_MAGIC2))
        at = address + XSTATE_BV_OFFSET - memory.base
        bv = _U32.unpack_from(memory.data, at)[0] | XFEATURE_MASK_FPSSE
        memory.copy_to_user(address + XSTATE_BV_OFFSET, _U32.pack(bv))


# -- what a handler starts with ----------------------------------------------------------------------------------------


def fpu_clear_user_states(fpu: Fpu) -> None:
    """User registers in their init state, supervisor ones as they are, PKRU at its default; the registers are live.

    XFD comes before the restore: the init image goes through registers that may be under another task's (bug B2).
    """
    cpu = running_cpu(fpu)
    if fpu.host.config.kernel.max_features & XFEATURE_MASK_SUPERVISOR_SUPPORTED and not fpregs_state_valid(fpu, cpu):
        _xrstor_supervisor(cpu, fpu.fpstate)
    cpu.xfd_update_state(fpu.fpstate.xfd)
    _restore_init_fpstate(cpu, fpu, XFEATURE_MASK_USER_RESTORE)
    set_task_pkru(fpu, fpu.host.config.init_pkru)
    fpregs_mark_activate(fpu, cpu)


def _restore_init_fpstate(cpu: Cpu, fpu: Fpu, mask: int) -> None:
    config, init = cpu.config, fpu.host.init_fpstate
    cpu.counters.restores += 1
    if not config.xsave:
        fault = fxrstor(cpu, init)
    else:
        fault = xrstor(cpu, init, mask & config.kernel.max_features, supervisor=config.caps.XSAVES)
    if fault is not None:
        raise CoreBug(f"restore of the init image raised {fault.name}")


def _xrstor_supervisor(cpu: Cpu, fpstate: Fpstate) -> None:
    """XRSTORS of supervisor components alone; none of them has an XFD bit."""
    mask = cpu.config.kernel.max_features & XFEATURE_MASK_SUPERVISOR_SUPPORTED
    cpu.counters.restores += 1
    fault = xrstor(cpu, fpstate, mask, supervisor=True)
    if fault is not None:
        raise CoreBug(f"restore of supervisor state from {fpstate} raised {fault.name}")


# -- back from the frame -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """What the software bytes of a frame say: ``xfeatures`` it claims to have; ``fx_only`` if they are not ours."""

    xfeatures: int
    fx_only: bool


def fpu_restore_sig(fpu: Fpu, memory: UserMemory, address: int) -> bool:
    """sigreturn: take the registers from the frame at ``address``, 0 for none. On False they are cleared instead."""
    if address == 0:
        fpu_clear_user_states(fpu)
        return True
    if _restore(fpu, memory, address):
        return True
    fpu_clear_user_states(fpu)
    return False


def _restore(fpu: Fpu, memory: UserMemory, address: int) -> bool:
    found = _check_xstate_in_sigframe(fpu, memory, address)
    if found is None:
        return False
    mask = found.xfeatures & (fpu.fpstate.user_xfeatures if fpu.host.config.xsave else XFEATURE_MASK_FPSSE)
    while True:
        vector = _restore_fpregs_from_user(fpu, memory, address, mask, fx_only=found.fx_only)
        if vector is None:
            return True
        # By the kernel's size, not by the frame's: else a frame that lies would fault for ever (bug B15).
        if vector is not Vector.PF or not memory.fault_in(address, fpu.fpstate.user_size):
            return False
        fpu.host.preempt_point("sigreturn: the frame was faulted in")


def _check_xstate_in_sigframe(fpu: Fpu, memory: UserMemory, address: int) -> _Found | None:
    """Read the software bytes and both magic words; None where they cannot be read.

    A frame without them is one that a program made of the legacy region alone: x87 and SSE are restored, the rest goes
    to its init state. Where the second word is looked for depends on the kernel (bug B38).
    """
    if not fpu.host.config.xsave:
        return _Found(XFEATURE_MASK_FPSSE, fx_only=False)
    raw = memory.copy_from_user(address + SW_BYTES_OFFSET, _SW_BYTES.size)
    if raw is None:
        return None
    magic1, extended_size, xfeatures, xstate_size = _SW_BYTES.unpack(raw)
    fx_only = _Found(XFEATURE_MASK_FPSSE, fx_only=True)
    size = fpu.fpstate.user_size
    if magic1 != FP_XSTATE_MAGIC1:
        return fx_only
    if fpu.host.config.rules.sigframe_says_its_size:
        if not XSAVE_EXTENDED_OFFSET <= xstate_size <= min(size, extended_size):
            return fx_only
        size = xstate_size
    magic2 = memory.copy_from_user(address + size, _U32.size)
    if magic2 is None:
        return None
    return _Found(xfeatures, fx_only=False) if _U32.unpack(magic2)[0] == FP_XSTATE_MAGIC2 else fx_only


def _restore_fpregs_from_user(fpu: Fpu, memory: UserMemory, address: int, mask: int, *, fx_only: bool) -> Vector | None:
    """One attempt with page faults disabled: the vector it ended in, None for success.

    A failed attempt may have changed registers. If they were not this task's, their owner must not find them (B35).
    """
    cpu = running_cpu(fpu)
    cpu.xfd_update_state(fpu.fpstate.xfd)
    vector = _load_from_user(cpu, fpu, memory, address, mask, fx_only=fx_only)
    cpu.interrupt_point()
    if vector is not None:
        if fpu.need_load:
            cpu.owner = None
        return vector
    if fpu.need_load and cpu.config.kernel.max_features & XFEATURE_MASK_SUPERVISOR_SUPPORTED:
        _xrstor_supervisor(cpu, fpu.fpstate)
    fpu.pkru = read_pkru(cpu)
    fpregs_mark_activate(fpu, cpu)
    return None


def _load_from_user(cpu: Cpu, fpu: Fpu, memory: UserMemory, address: int, mask: int, *, fx_only: bool) -> Vector | None:
    """XRSTOR of ``mask`` from the frame, or FXRSTOR; what the frame has not goes to its init state."""
    config, fpstate = cpu.config, fpu.fpstate
    core_assert(xstate_op_valid(cpu, fpu, fpstate, mask), f"restore of {fpstate} from user memory: XFD is out of date")
    cpu.counters.restores += 1
    if fx_only or not config.xsave:
        vector = _fxrstor_from_user(cpu, memory, address)
    else:
        vector = _xrstor_from_user(cpu, memory, address, mask)
    missing = fpstate.user_xfeatures & ~mask
    if vector is None and config.xsave and missing:
        _restore_init_fpstate(cpu, fpu, missing)
    return vector


def _fxrstor_from_user(cpu: Cpu, memory: UserMemory, address: int) -> Vector | None:
    if address % _FXSAVE_ALIGN:
        return Vector.GP
    if memory.readable_bytes(address, FXSAVE_SIZE_BYTES) < FXSAVE_SIZE_BYTES:
        return Vector.PF
    start = address - memory.base
    return fxrstor(cpu, _LegacyImage(memory.data[start : start + FXSAVE_SIZE_BYTES]))


def _xrstor_from_user(cpu: Cpu, memory: UserMemory, address: int, mask: int) -> Vector | None:
    """XRSTOR, which touches the components that XSTATE_BV has. A page fault leaves those before it loaded."""
    if address % _FRAME_ALIGN:
        return Vector.GP
    present = memory.readable_bytes(address, len(memory.data))
    if present < XSAVE_EXTENDED_OFFSET:
        return Vector.PF
    start = address - memory.base
    image = memory.data[start : start + present]
    beyond = _beyond(cpu, image, mask)
    vector = xrstor_from_memory(cpu, image, mask & ~beyond, address=address)
    return vector if vector is not None or not beyond else Vector.PF


def _beyond(cpu: Cpu, image: bytearray, mask: int) -> int:
    """The components of ``mask`` that do not lie in the part of the frame that is present."""
    ends = loaded_component_ends(cpu, MemoryImage(image), mask)
    return sum(1 << nr for nr, end in ends.items() if end > len(image))


class _LegacyImage:
    """512 bytes of FXSAVE format in user memory: it has no header."""

    __slots__ = ("regs", "xcomp_bv", "xstate_bv")

    def __init__(self, regs: bytearray) -> None:
        self.regs = regs
        self.xstate_bv = XFEATURE_MASK_FPSSE
        self.xcomp_bv = 0
