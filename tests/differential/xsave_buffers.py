"""kvm_xsave_buffers: whole KVM_GET_XSAVE2 buffers of a real KVM after guest code loaded known registers.

The guest of the recording ran at ring 3 on the processor itself. Which registers it loaded is in the name of the case:
'x87', 'sse_xcr0_7' (XCR0 was 7), 'avx512_xcr0_e7', 'fresh_vcpu_never_run'. Its XCR0 is not enforced there (the host's
own is in the register), so the model's guest loads them whatever XCR0 it has.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fpu_core.cpu import Cpu
from fpu_core.errors import Errno
from fpu_core.fpstate import MXCSR_INIT
from fpu_core.layout import MXCSR_OFFSET
from fpu_core.xfeature import (
    XFEATURE_FP,
    XFEATURE_MASK_SSE,
    XFEATURE_OPMASK,
    XFEATURE_SSE,
    XFEATURE_YMM,
    XFEATURE_Hi16_ZMM,
    XFEATURE_ZMM_Hi256,
)
from host_agent.kvm.run import guest_window, vcpu_leave
from host_agent.kvm.vcpu import Vcpu
from host_agent.kvm.xcrs_ioctl import Xcr, get_xcrs, set_xcrs
from host_agent.kvm.xsave_ioctl import get_xsave, get_xsave2
from tests.differential.kvm_host import enter, fresh_vcpu
from tests.differential.report import NotModelledError, Report, load_rows

#: Offsets in the guest memory of the recording, as its ``obtained`` says.
_ZMM_STRIDE, _OPMASKS, _MXCSR, _FCW, _DOUBLE = 64, 2048, 4096, 4100, 4104
#: What FLDPI loads where rounding is to nearest or up; one less in the last place otherwise. SDM vol. 1, 8.3.8.
_PI_MANTISSA = 0xC90FDAA22168C235
_TOP_AFTER_THREE_PUSHES = 5
#: Exponent of infinities and NaNs; the exception flags of FSW, and their masks in FCW.
_DOUBLE_SPECIAL, _IE, _DE = 0x7FF, 1 << 0, 1 << 1
_NEVER_RUN = "fresh_vcpu_never_run"


def run(path: Path, name_prefix: str = "") -> Report:
    """Judge the buffers whose case starts with ``name_prefix``."""
    report = Report("xsave-buffers")
    for row in load_rows(path, "buffers"):
        if row["case"].startswith(name_prefix):
            report.rows += 1
            _compare_row(report, row)
    return report


def _compare_row(report: Report, row: dict[str, Any]) -> None:
    where = f"{row['case']}, rep {row['rep']}"
    vcpu = fresh_vcpu(cpuid=None)
    if row["set_xcrs"] != "-":
        done = set_xcrs(vcpu, [Xcr(0, int(row["xcr0_requested"], 16))])
        report.compare(where, "set_xcrs", done.name if isinstance(done, Errno) else "OK", row["set_xcrs"])
    if row["case"] != _NEVER_RUN:
        _run_guest(vcpu, _loads(row), bytes.fromhex(row["guest_memory_registers_source"]))
    _compare_xsave(report, where, vcpu, row)
    xcrs = get_xcrs(vcpu)
    assert not isinstance(xcrs, Errno)
    report.compare(where, "nr_xcrs", len(xcrs), row["nr_xcrs"])
    report.compare(where, "get_xcrs", hex(xcrs[0].value), row["get_xcrs"])
    if "kvm_fpu" in row:
        report.compare(where, "kvm_fpu", _kvm_fpu(vcpu), row["kvm_fpu"])


def _compare_xsave(report: Report, where: str, vcpu: Vcpu, row: dict[str, Any]) -> None:
    old, new = get_xsave(vcpu), get_xsave2(vcpu)
    report.compare(where, "get_xsave", old.name if isinstance(old, Errno) else "OK", row["get_xsave"])
    report.compare(where, "get_xsave2", new.name if isinstance(new, Errno) else "OK", row["get_xsave2"])
    report.compare(where, "xsave_equals_xsave2", old == new, row["xsave_equals_xsave2"])
    assert isinstance(new, bytes)
    report.compare(where, "bytes_written_extent", len(new), row["bytes_written_extent"])
    theirs = bytes.fromhex(row["xsave2"])
    if new != theirs:
        at = next((nr for nr, (one, other) in enumerate(zip(new, theirs, strict=False)) if one != other), len(new))
        report.compare(where, f"xsave2 from byte {at}", new[at : at + 16].hex(), theirs[at : at + 16].hex())


def _kvm_fpu(vcpu: Vcpu) -> dict[str, object]:
    """KVM_GET_FPU: words of the legacy region as they lie there. It never fills in MXCSR.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_get_fpu().
    """
    fcw, fsw, ftwx = struct.unpack_from("<HHB", vcpu.fpstate.regs)
    return {"fcw": fcw, "fsw": fsw, "ftwx": ftwx, "mxcsr": "0x0"}


# -- the guest of the recording ----------------------------------------------------------------------------------------

Load = Callable[[Cpu, bytes], None]


def _run_guest(vcpu: Vcpu, loads: list[Load], source: bytes) -> None:
    enter(vcpu)
    with guest_window(vcpu) as cpu:
        cpu.write_register(XFEATURE_SSE, 0, bytes(16))
        for load in loads:
            load(cpu, source)
        # In the machine of the recording SSE is in use once a vCPU has run, whatever it did (docs/findings.md). A
        # component in its init state may be, by the manual; on a bare Zen 4 it is not.
        cpu.xinuse |= XFEATURE_MASK_SSE
    vcpu_leave(vcpu)


def _loads(row: dict[str, Any]) -> list[Load]:
    """What the words of a case, up to ``xcr0``, say that the guest loaded.

    Whether XMM or YMM registers came with MXCSR they do not say; then the buffer does: it holds MXCSR's initial value,
    or else it has to hold the guest's.
    """
    case = row["case"]
    words = case.partition("_xcr0")[0].split("_")
    unknown = [word for word in words if word not in _LOADS]
    if unknown:
        raise NotModelledError(f"case {case!r}: expected words out of {', '.join(_LOADS)}, got {unknown[0]!r}")
    if {"sse", "avx"} & set(words) and _mxcsr_in(row["xsave2"]) != MXCSR_INIT:
        words.append("mxcsr")
    return [_LOADS[word] for word in words]


def _mxcsr_in(xsave: str) -> int:
    return int.from_bytes(bytes.fromhex(xsave)[MXCSR_OFFSET : MXCSR_OFFSET + 4], "little")


def _load_xmm(cpu: Cpu, source: bytes) -> None:
    cpu.write_register(XFEATURE_SSE, 0, _slices(source, range(16), 0, 16))


def _load_ymm(cpu: Cpu, source: bytes) -> None:
    _load_xmm(cpu, source)
    cpu.write_register(XFEATURE_YMM, 0, _slices(source, range(16), 16, 32))


def _load_zmm(cpu: Cpu, source: bytes) -> None:
    _load_ymm(cpu, source)
    cpu.write_register(XFEATURE_ZMM_Hi256, 0, _slices(source, range(16), 32, 64))
    cpu.write_register(XFEATURE_Hi16_ZMM, 0, _slices(source, range(16, 32), 0, 64))
    cpu.write_register(XFEATURE_OPMASK, 0, source[_OPMASKS : _OPMASKS + 64])


def _slices(source: bytes, registers: range, start: int, end: int) -> bytes:
    return b"".join(source[nr * _ZMM_STRIDE + start : nr * _ZMM_STRIDE + end] for nr in registers)


def _load_mxcsr(cpu: Cpu, source: bytes) -> None:
    cpu.write_register(XFEATURE_FP, MXCSR_OFFSET, source[_MXCSR : _MXCSR + 4])


def _load_x87(cpu: Cpu, source: bytes) -> None:
    """FLDCW, FLDPI, FLD1, FLD of a double: three registers of the stack, TOP = 5, tags in the abridged form.

    FOP, FIP and FDP stay 0: AMD saves them only while an exception is pending. APM vol. 5, FXSAVE.
    """
    (fcw,) = struct.unpack_from("<H", source, _FCW)
    double, flags = _fld(source[_DOUBLE : _DOUBLE + 8])
    if flags & ~fcw:
        raise NotModelledError(f"FCW {fcw:#x} with {source[_DOUBLE : _DOUBLE + 8].hex()}: an exception is not masked")
    fsw = _TOP_AFTER_THREE_PUSHES << 11 | flags
    tags = 0xFF & ~((1 << _TOP_AFTER_THREE_PUSHES) - 1)
    cpu.write_register(XFEATURE_FP, 0, struct.pack("<HHB", fcw, fsw, tags))
    stack = (double, _extended(1.0), _pi(fcw))
    for nr, raw in enumerate(stack):
        cpu.write_register(XFEATURE_FP, 32 + 16 * nr, raw)


def _pi(fcw: int) -> bytes:
    """The constant in the rounding mode of FCW bits 10 and 11: 0 nearest, 1 down, 2 up, 3 towards zero."""
    down = fcw >> 10 & 3 in (1, 3)
    return struct.pack("<QH", _PI_MANTISSA - down, 0x4000)


def _extended(value: float) -> bytes:
    """The 80 bits of a number that is not special: sign and exponent, and a mantissa with its leading one."""
    raw, _flags = _fld(struct.pack("<d", value))
    return raw


def _fld(raw: bytes) -> tuple[bytes, int]:
    """FLD of a double's 8 bytes: the 80 bits that are pushed, and the exception flags it sets, all of them masked.

    A denormal is normalised (DE); a signalling NaN becomes quiet (IE). Source: SDM vol. 1, 8.5.1 and 8.5.2.
    """
    (bits,) = struct.unpack("<Q", raw)
    sign, exponent, fraction = bits >> 63 << 15, bits >> 52 & 0x7FF, bits & (1 << 52) - 1
    if exponent == _DOUBLE_SPECIAL:
        signalling = fraction and not fraction >> 51
        mantissa = 1 << 63 | fraction << 11 | (1 << 62 if signalling else 0)
        return struct.pack("<QH", mantissa, sign | 0x7FFF), _IE if signalling else 0
    if not exponent:
        if not fraction:
            return struct.pack("<QH", 0, sign), 0
        shift = 53 - fraction.bit_length()
        return struct.pack("<QH", fraction << 11 + shift, sign | 16383 - 1022 - shift), _DE
    return struct.pack("<QH", 1 << 63 | fraction << 11, sign | exponent - 1023 + 16383), 0


_LOADS: dict[str, Load] = {
    "x87": _load_x87,
    "sse": _load_xmm,
    "avx": _load_ymm,
    "avx512": _load_zmm,
    "mxcsr": _load_mxcsr,
}
