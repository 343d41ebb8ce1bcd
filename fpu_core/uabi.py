"""The user format (UABI) of an image: how state leaves the kernel and how it comes in.

A UABI buffer is always in the standard format with XCOMP_BV = 0, whatever the kernel's own image looks like. PKRU is
never taken from the image: it is switched beside the FPU code, so its owner hands it in and gets it back.

    copy_xstate_to_uabi          out: absent components are zeros (x87 and MXCSR: their init values), so are all gaps
    copy_uabi_to_xstate          in: everything is checked before anything is copied; XSTATE_BV is written last
    fpu_copy_*                   the same for a guest's container, with KVM's rules in front

Where the kernel could stop in the middle of a copy (a fault on user memory), ours has looked first: a refused buffer
changes nothing, and the errno is the one that the kernel's order of checks gives.

Sources: arch/x86/kernel/fpu/xstate.c, __copy_xstate_to_uabi_buf(), copy_uabi_to_xstate(),
validate_user_xstate_header(); core.c, fpu_copy_guest_fpstate_to_uabi(), fpu_copy_uabi_to_guest_fpstate().
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from fpu_core.config import FpuConfig
from fpu_core.errors import Errno, core_assert
from fpu_core.fpstate import MXCSR_INIT, Fpstate, image_offsets
from fpu_core.fpu import FpuGuest, FpuHost
from fpu_core.guest import guest_container
from fpu_core.layout import (
    FXSAVE_SIZE_BYTES,
    MXCSR_OFFSET,
    XMM_SPACE_OFFSET,
    XMM_SPACE_SIZE_BYTES,
    XSAVE_EXTENDED_OFFSET,
    XSTATE_BV_OFFSET,
)
from fpu_core.x87 import FCW_INIT
from fpu_core.xfeature import (
    XFEATURE_MASK_FP,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_PKRU,
    XFEATURE_MASK_SSE,
    XFEATURE_MASK_SUPERVISOR_ALL,
    XFEATURE_MASK_YMM,
    XFEATURE_PKRU,
    for_each_set_bit,
)

#: Where the legacy region's software bytes start. The kernel puts its user features there, as a u64, and zeros behind.
#: Source: arch/x86/kernel/fpu/xstate.h, xstate_fx_sw_bytes; seen in the buffers of a real KVM.
SW_RESERVED_OFFSET: Final = 464

_U64: Final = struct.Struct("<Q")
#: XSTATE_BV and XCOMP_BV; 48 reserved bytes follow.
_HEADER_WORDS: Final = struct.Struct("<QQ")
#: MXCSR and MXCSR_MASK.
_MXCSR_PAIR: Final = struct.Struct("<II")
_ST_SPACE_OFFSET: Final = MXCSR_OFFSET + _MXCSR_PAIR.size
_SSE_YMM: Final = XFEATURE_MASK_SSE | XFEATURE_MASK_YMM


# -- out ---------------------------------------------------------------------------------------------------------------


def copy_xstate_to_uabi(config: FpuConfig, fpstate: Fpstate, size: int, xfeatures: int, pkru: int) -> bytes:
    """Return ``size`` bytes of the user format of ``fpstate``, cut to the components of ``xfeatures``.

    ``pkru`` is the value the PKRU component gets, if XSTATE_BV has it at all. Nothing is written behind ``size``.
    """
    bv = fpstate.xstate_bv & fpstate.user_xfeatures & xfeatures
    table = config.table
    standard = table.offsets(fpstate.user_xfeatures, compacted=False)
    out = bytearray(max(size, _end_of(config, bv)))
    _put_legacy(config, fpstate, bv, out)
    _U64.pack_into(out, SW_RESERVED_OFFSET, config.user.max_features)
    _U64.pack_into(out, XSTATE_BV_OFFSET, bv)
    image = image_offsets(fpstate, config)
    for nr in for_each_set_bit(bv & ~XFEATURE_MASK_FPSSE):
        length = table.size_bytes(nr)
        raw = _pkru_state(pkru, length) if nr == XFEATURE_PKRU else fpstate.regs[image[nr] : image[nr] + length]
        out[standard[nr] : standard[nr] + length] = raw
    return bytes(out[:size])


def fpu_copy_guest_fpstate_to_uabi(host: FpuHost, guest: FpuGuest, size: int, xfeatures: int, pkru: int) -> bytes:
    """Return ``size`` bytes of a guest's state. Its registers must be in memory: the vCPU is not loaded.

    On a host without XSAVE the 512 bytes are the image as it is, and XSTATE_BV says x87 and SSE, so that a host with
    XSAVE can take the buffer.
    """
    fpstate = guest_container(guest)
    core_assert(not fpstate.in_use, f"{fpstate} is read while its registers are on a CPU")
    if host.config.xsave:
        return copy_xstate_to_uabi(host.config, fpstate, size, xfeatures, pkru)
    out = bytearray(max(size, XSAVE_EXTENDED_OFFSET))
    out[:FXSAVE_SIZE_BYTES] = fpstate.regs[:FXSAVE_SIZE_BYTES]
    _U64.pack_into(out, XSTATE_BV_OFFSET, XFEATURE_MASK_FPSSE)
    return bytes(out[:size])


def _put_legacy(config: FpuConfig, fpstate: Fpstate, bv: int, out: bytearray) -> None:
    """x87 by its bit, MXCSR by SSE's or YMM's (never by x87's alone), XMM by SSE's; init values where there is none."""
    xmm_end = XMM_SPACE_OFFSET + XMM_SPACE_SIZE_BYTES
    if bv & XFEATURE_MASK_FP:
        out[:XMM_SPACE_OFFSET] = fpstate.regs[:XMM_SPACE_OFFSET]
    else:
        out[0:2] = FCW_INIT.to_bytes(2, "little")
    if bv & _SSE_YMM:
        out[MXCSR_OFFSET:_ST_SPACE_OFFSET] = fpstate.regs[MXCSR_OFFSET:_ST_SPACE_OFFSET]
    else:
        _MXCSR_PAIR.pack_into(out, MXCSR_OFFSET, MXCSR_INIT, config.mxcsr_mask)
    if bv & XFEATURE_MASK_SSE:
        out[XMM_SPACE_OFFSET:xmm_end] = fpstate.regs[XMM_SPACE_OFFSET:xmm_end]


def _pkru_state(pkru: int, length: int) -> bytes:
    return pkru.to_bytes(length, "little")


# -- in ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Imported:
    """The buffer was taken. ``pkru`` is the PKRU it carries, None where its XSTATE_BV has none.

    What None means is the caller's: KVM leaves the vCPU's PKRU alone, ptrace and sigreturn set the task's to 0, as
    XRSTOR would (bug B33).
    """

    pkru: int | None


def copy_uabi_to_xstate(config: FpuConfig, fpstate: Fpstate, buf: bytes) -> Imported | Errno:
    """Take a UABI buffer into an image that is the truth in memory; EINVAL or EFAULT changes nothing.

    Components that the buffer's XSTATE_BV leaves out keep their bytes and become init; supervisor bits stay as they
    are. EFAULT: ``buf`` ends before something it says it has.
    """
    errno = uabi_error(config, buf, fpstate.user_xfeatures)
    if errno is not Errno.OK:
        return errno
    (bv,) = _U64.unpack_from(buf, XSTATE_BV_OFFSET)
    if bv & _SSE_YMM and not bv & XFEATURE_MASK_FP:
        fpstate.regs[MXCSR_OFFSET:_ST_SPACE_OFFSET] = buf[MXCSR_OFFSET:_ST_SPACE_OFFSET]
    standard = config.table.offsets(bv, compacted=False)
    image = image_offsets(fpstate, config)
    for nr in for_each_set_bit(bv):
        length = config.table.size_bytes(nr)
        fpstate.regs[image[nr] : image[nr] + length] = buf[standard[nr] : standard[nr] + length]
    fpstate.xstate_bv = (fpstate.xstate_bv & XFEATURE_MASK_SUPERVISOR_ALL) | bv
    if not bv & XFEATURE_MASK_PKRU:
        return Imported(None)
    return Imported(int.from_bytes(buf[standard[XFEATURE_PKRU] : standard[XFEATURE_PKRU] + 4], "little"))


def uabi_error(config: FpuConfig, buf: bytes, user_xfeatures: int) -> Errno:
    """Return what ``copy_uabi_to_xstate`` would say of ``buf`` for a container with ``user_xfeatures``. Pure.

    The order is the kernel's: the header, then MXCSR where x87, SSE or YMM is there, then the components.
    """
    if len(buf) < XSAVE_EXTENDED_OFFSET:
        return Errno.EFAULT
    bv, xcomp_bv = _HEADER_WORDS.unpack_from(buf, XSTATE_BV_OFFSET)
    reserved = buf[XSTATE_BV_OFFSET + _HEADER_WORDS.size : XSAVE_EXTENDED_OFFSET]
    if bv & ~user_xfeatures or xcomp_bv or any(reserved):
        return Errno.EINVAL
    if bv & (XFEATURE_MASK_FP | _SSE_YMM) and _mxcsr(buf) & ~config.mxcsr_mask:
        return Errno.EINVAL
    return Errno.EFAULT if len(buf) < _end_of(config, bv) else Errno.OK


def fpu_copy_uabi_to_guest_fpstate(host: FpuHost, guest: FpuGuest, buf: bytes, xcr0: int) -> Imported | Errno:
    """Take a UABI buffer into a guest's container, which must not be loaded; EINVAL changes nothing.

    ``xcr0`` is what XSTATE_BV may have at all: KVM passes what the host supports, not what the guest's CPUID does.
    A component that the guest's XFD disables is refused with a warning, for it could not be loaded (January 2026,
    bug B1); KVM has masked it away before.
    """
    config = host.config
    fpstate = guest_container(guest)
    core_assert(not fpstate.in_use, f"{fpstate} is written while its registers are on a CPU")
    errno = guest_uabi_error(config, buf, xcr0, fpstate.user_xfeatures, fpstate.xfd)
    if errno is not Errno.OK:
        _warn_of_xfd(host, fpstate, buf, xcr0)
        return errno
    if config.xsave:
        return copy_uabi_to_xstate(config, fpstate, buf)
    fpstate.regs[:FXSAVE_SIZE_BYTES] = buf[:FXSAVE_SIZE_BYTES]
    return Imported(None)


def guest_uabi_error(config: FpuConfig, buf: bytes, xcr0: int, user_xfeatures: int, xfd: int) -> Errno:
    """Return what ``fpu_copy_uabi_to_guest_fpstate`` would say for a container of that description. Pure."""
    if len(buf) < XSAVE_EXTENDED_OFFSET:
        return Errno.EFAULT
    (bv,) = _U64.unpack_from(buf, XSTATE_BV_OFFSET)
    if not config.xsave:
        return Errno.EINVAL if bv & ~XFEATURE_MASK_FPSSE or _mxcsr(buf) & ~config.mxcsr_mask else Errno.OK
    if bv & ~xcr0 or bv & xfd:
        return Errno.EINVAL
    return uabi_error(config, buf, user_xfeatures)


def _warn_of_xfd(host: FpuHost, fpstate: Fpstate, buf: bytes, xcr0: int) -> None:
    """Where it was XFD, which is asked after XCR0, that the buffer was refused for, the kernel warns."""
    if host.tracer is None or not host.config.xsave or len(buf) < XSAVE_EXTENDED_OFFSET:
        return
    (bv,) = _U64.unpack_from(buf, XSTATE_BV_OFFSET)
    if bv & fpstate.xfd and not bv & ~xcr0:
        host.tracer.warn("ustate->xsave.header.xfeatures & kstate->xfd")


# -- both ways ---------------------------------------------------------------------------------------------------------


def _end_of(config: FpuConfig, bv: int) -> int:
    return config.table.calculate_size(bv, compacted=False)


def _mxcsr(buf: bytes) -> int:
    return int.from_bytes(buf[MXCSR_OFFSET : MXCSR_OFFSET + 4], "little")
