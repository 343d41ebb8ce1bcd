"""native-images and native-faults: what a bare Zen 4 did at ring 3, against the model of that processor.

Images: XRSTOR of a source, XGETBV(1), and a save into memory full of 0xAA with a zeroed header. Faults: XRSTOR of an
image that is described in words, and whether it took #GP. The words of an input are read one by one; one that is not
known is an error, not a row that passes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from fpu_core.config import FpuConfig, boot
from fpu_core.cpu import Cpu, Vector
from fpu_core.cpuid import builtin_profile
from fpu_core.fpstate import MXCSR_INIT
from fpu_core.layout import MXCSR_OFFSET, XCOMP_BV_OFFSET, XSAVE_EXTENDED_OFFSET, XSTATE_BV_OFFSET
from fpu_core.x87 import X87_INIT
from fpu_core.xfeature import XCOMP_BV_COMPACTED_FORMAT, XFEATURE_FP, XFEATURE_MASK_SSE
from fpu_core.xsave_insn import MemoryImage, XsaveInsn, xrstor_from_memory, xsave_to_memory
from tests.differential.report import Report, load_rows

#: The processor of the data, and XCR0 as its kernel had it.
_PROFILE: Final = "zen4"
_XCR0: Final = 0xE7
_U64_MAX: Final = (1 << 64) - 1
_FILL: Final = 0xAA
#: MXCSR of the recorded sources. Rows without a source do not say it, but their XINUSE does.
_MXCSR: Final = 0x1FA0
#: Bytes of every recorded result.
_RESULT_BYTES: Final = 2440
#: A recorded source of random bytes may end in 0xAA by chance, and its extent then is so much shorter; more is no luck.
_LUCK: Final = 3


@cache
def _config() -> FpuConfig:
    return boot(builtin_profile(_PROFILE))


def _cpu() -> Cpu:
    cpu = Cpu(0, _config())
    cpu.xcr0 = _XCR0
    return cpu


def _size() -> int:
    return _config().table.calculate_size(_XCR0, compacted=False)


# -- images ------------------------------------------------------------------------------------------------------------


def run_images(path: Path, name_prefix: str = "") -> Report:
    """Judge the ``images`` of a file: by everything a row says."""
    report = Report("native-images")
    for nr, row in enumerate(load_rows(path, "images")):
        where = f"{nr} {row['instr']} rfbm={row['rfbm']} of xstate_bv={row['source_xstate_bv']}"
        if where.startswith(name_prefix) or row["instr"].startswith(name_prefix):
            report.rows += 1
            _compare_image(report, where, row)
    return report


def _compare_image(report: Report, where: str, row: dict[str, Any]) -> None:
    ours = _load_and_save(row, _source(row))
    missing = 0 if "source" in row else ours["extent_not_0xAA"] - int(row["extent_not_0xAA"])
    if 0 < missing <= _LUCK:
        ours = _load_and_save(row, _source(row, fill_last=missing))
    for key in ("loads", "saves"):
        if not report.compare(where, key, ours[key], None):
            return
    for key in ("xinuse_after_load", "result_xstate_bv", "result_xcomp_bv", "extent_not_0xAA"):
        report.compare(where, key, ours[key], row[key])
    if "result_prefilled_aa_header_zero" in row:
        _compare_bytes(report, where, ours["image"], bytes.fromhex(row["result_prefilled_aa_header_zero"]))


def _load_and_save(row: dict[str, Any], source: bytes) -> dict[str, Any]:
    """What the model answers, by the names of the data."""
    cpu = _cpu()
    loaded_rfbm = _U64_MAX if row["loaded_rfbm"] == "all" else int(row["loaded_rfbm"], 16)
    saved = bytearray([_FILL] * _RESULT_BYTES)
    saved[XSTATE_BV_OFFSET:XSAVE_EXTENDED_OFFSET] = bytes(64)
    loads = xrstor_from_memory(cpu, source, loaded_rfbm)
    xinuse = cpu.xgetbv1()
    saves = xsave_to_memory(cpu, XsaveInsn(row["instr"]), saved, int(row["rfbm"], 16))
    return {
        "loads": loads,
        "saves": saves,
        "xinuse_after_load": hex(xinuse),
        "result_xstate_bv": hex(MemoryImage(saved).xstate_bv),
        "result_xcomp_bv": hex(MemoryImage(saved).xcomp_bv),
        "extent_not_0xAA": _extent(saved),
        "image": bytes(saved),
    }


def _extent(saved: bytearray) -> int:
    """Where the last byte that is not 0xAA ends. The header was zeroed by hand, so of it only the two words count."""
    extended = saved[XSAVE_EXTENDED_OFFSET:].rstrip(bytes([_FILL]))
    return XSAVE_EXTENDED_OFFSET + len(extended) if extended else XCOMP_BV_OFFSET + 8


def _compare_bytes(report: Report, where: str, ours: bytes, theirs: bytes) -> None:
    at = next((at for at, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), None)
    if at is not None:
        report.compare(where, f"image at {at}", ours[at : at + 16].hex(), theirs[at : at + 16].hex())


def _source(row: dict[str, Any], *, fill_last: int = 0) -> bytes:
    """The recorded source, or one that the row's masks fit: what XINUSE has holds something, the rest is init.

    ``fill_last`` bytes at the end of each component are 0xAA: a recorded extent falls short by them.
    """
    if "source" in row:
        return bytes.fromhex(row["source"])
    bv, xinuse = int(row["source_xstate_bv"], 16), int(row["xinuse_after_load"], 16)
    table = _config().table
    source = bytearray(table.calculate_size(_XCR0, compacted=False))
    for nr, offset in table.offsets(_XCR0, compacted=False).items():
        size = table.size_bytes(nr)
        if (bv & xinuse) >> nr & 1:
            source[offset : offset + size] = bytes([0x11] * (size - fill_last) + [_FILL] * fill_last)
        elif nr == XFEATURE_FP:
            source[:size] = X87_INIT
    MemoryImage(source).xstate_bv = bv
    mxcsr = _MXCSR if xinuse & ~bv & XFEATURE_MASK_SSE else MXCSR_INIT
    source[MXCSR_OFFSET : MXCSR_OFFSET + 4] = mxcsr.to_bytes(4, "little")
    return bytes(source)


# -- faults ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Input:
    """An instruction and what it is given."""

    insn: XsaveInsn
    memory: bytearray
    rfbm: int = _U64_MAX
    address: int = 0

    def execute(self, cpu: Cpu) -> Vector | None:
        """The fault, or None."""
        if self.insn.stores:
            return xsave_to_memory(cpu, self.insn, self.memory, self.rfbm, address=self.address)
        return xrstor_from_memory(cpu, self.memory, self.rfbm, address=self.address)


def run_faults(path: Path, name_prefix: str = "") -> Report:
    """Judge the ``rows`` of a file: fault or none."""
    report = Report("native-faults")
    for row in load_rows(path):
        where = row["input"]
        if where.startswith(name_prefix):
            report.rows += 1
            fault = parse_input(row["instr"], where).execute(_cpu())
            report.compare(f"{row['instr']} of {where!r}", "verdict", _verdict(fault), row["verdict"])
    return report


def _verdict(fault: Vector | None) -> str:
    return "OK" if fault is None else f"SIGSEGV trap {int(fault)}"


def parse_input(instr: str, text: str) -> _Input:
    """Read an input such as ``standard xstate_bv=3 rfbm=0x1 mxcsr=0x1f80|bit5``; ``ValueError`` for one unknown."""
    memory = bytearray(_size())
    memory[MXCSR_OFFSET : MXCSR_OFFSET + 4] = MXCSR_INIT.to_bytes(4, "little")
    made = _Input(XsaveInsn(instr), memory)
    words = text.split()
    if words[0] in {insn.value for insn in XsaveInsn}:  # the instruction may be named in the text itself
        made.insn = XsaveInsn(words.pop(0))
    if words and words[0] == "compacted":
        MemoryImage(memory).xcomp_bv = XCOMP_BV_COMPACTED_FORMAT | _XCR0
    if words and words[0] in ("standard", "compacted"):
        words.pop(0)
    rest = " ".join(words)
    for pattern, put in _FORMS:
        rest = pattern.sub(lambda match, put=put: put(made, match) or "", rest).strip()  # type: ignore[misc]
    if rest:
        raise ValueError(f"cannot read {rest!r} of the input {text!r}")
    return made


def _value(text: str) -> int:
    """``0x7``, ``all``, ``bit5``, or several joined by ``|``."""
    value = 0
    for part in text.split("|"):
        if part == "all":
            value |= _U64_MAX
        elif part.startswith("bit"):
            value |= 1 << int(part[3:])
        else:
            value |= int(part, 0)
    return value


def _put_xstate_bv(made: _Input, match: re.Match[str]) -> None:
    MemoryImage(made.memory).xstate_bv = _value(match[1])


def _put_xcomp_bv(made: _Input, match: re.Match[str]) -> None:
    """``xcomp_bv=`` is the whole word; ``xcomp=`` names components of the compacted form."""
    compacted = MemoryImage(made.memory).xcomp_bv & XCOMP_BV_COMPACTED_FORMAT
    MemoryImage(made.memory).xcomp_bv = _value(match[2]) | (0 if match[1] else compacted)


def _put_rfbm(made: _Input, match: re.Match[str]) -> None:
    made.rfbm = _value(match[1])


def _put_mxcsr(made: _Input, match: re.Match[str]) -> None:
    made.memory[MXCSR_OFFSET : MXCSR_OFFSET + 4] = _value(match[1]).to_bytes(4, "little")


def _put_header_byte(made: _Input, match: re.Match[str]) -> None:
    made.memory[XSTATE_BV_OFFSET + int(match[1])] = _value(match[2])


def _put_address(made: _Input, match: re.Match[str]) -> None:
    made.address += int(match[1])


_FORMS: Final = (
    (re.compile(r"\bxstate_bv=(\S+)"), _put_xstate_bv),
    (re.compile(r"\bxcomp(_bv)?=(\S+)"), _put_xcomp_bv),
    (re.compile(r"\brfbm=(\S+)"), _put_rfbm),
    (re.compile(r"\bmxcsr=(\S+)"), _put_mxcsr),
    (re.compile(r"\bheader byte (\d+)=(\S+)"), _put_header_byte),
    (re.compile(r"\bmisaligned by (\d+)"), _put_address),
)
