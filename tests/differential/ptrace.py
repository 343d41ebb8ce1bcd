"""ptrace_xstate_verdicts: PTRACE_SETREGSET of NT_X86_XSTATE on a stopped child of a real kernel, one change at a time.

Each row changes one thing of what the child had (the row ``GETREGSET``), writes it, reads back, and puts the child
right again. The child's registers are not known beforehand, so the first image is what the model's child is given.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any, Final

from fpu_core.config import FpuConfig
from fpu_core.errors import Errno
from fpu_core.fpu import Fpu
from fpu_core.layout import MXCSR_OFFSET, XCOMP_BV_OFFSET, XSTATE_BV_OFFSET
from fpu_core.regset import ptrace_getregset, ptrace_setregset
from fpu_core.sigframe import SW_BYTES_OFFSET
from tests.differential.machine import recorded_machine, stopped_task
from tests.differential.report import Report, load_file, rows_of

#: Longer than any image: what the program that asked gave GETREGSET.
_BUFFER_BYTES: Final = 65536
_FIELDS: Final = {
    "xstate_bv": (XSTATE_BV_OFFSET, "<Q"),
    "xcomp_bv": (XCOMP_BV_OFFSET, "<Q"),
    "mxcsr": (MXCSR_OFFSET, "<I"),
}
_HEADER_BYTE: Final = re.compile(r"header byte (\d+)=(\d+)")
_LENGTH: Final = re.compile(r"len=(\d+)")


def run(path: Path, name_prefix: str = "") -> Report:
    """Judge every write of ``path``: its verdict, and what is read back afterwards."""
    data = load_file(path)
    rows = rows_of(data)
    report = Report("ptrace")
    config = recorded_machine(data.get("obtained"))
    original = _original(rows)
    for nr, row in enumerate(rows):
        if row["input"].startswith(name_prefix):
            report.rows += 1
            where = f"row {nr} {row['input']!r}"
            if row["input"] == "GETREGSET":
                _compare_image(report, where, config, row)
            else:
                _compare_write(report, where, config, original, row)
    return report


def _original(rows: list[dict[str, Any]]) -> bytes:
    """The child's image before anything was written."""
    first = next((row for row in rows if row["input"] == "GETREGSET"), None)
    if first is None:
        raise ValueError("expected a row 'GETREGSET', with the image that the others change")
    return bytes.fromhex(first["image"])


def _child(config: FpuConfig, image: bytes) -> Fpu:
    fpu = stopped_task(config)
    errno = ptrace_setregset(fpu, image)
    if errno is not Errno.OK:
        raise ValueError(f"the image of GETREGSET cannot be written: {errno.name}")
    return fpu


def _read(fpu: Fpu) -> bytes:
    image = ptrace_getregset(fpu, _BUFFER_BYTES)
    if isinstance(image, Errno):
        raise ValueError(f"GETREGSET: {image.name}")  # noqa: TRY004 -- the machine of the file has no XSAVE
    return image


def _compare_image(report: Report, where: str, config: FpuConfig, row: dict[str, Any]) -> None:
    theirs = bytes.fromhex(row["image"])
    ours = _read(_child(config, theirs))
    report.compare(where, "verdict", "OK", row["verdict"])
    report.compare(where, "len", len(ours), row["len"])
    report.compare(where, "xstate_bv", hex(_get(ours, "xstate_bv")), row["xstate_bv"])
    sw_xfeatures = int.from_bytes(ours[SW_BYTES_OFFSET : SW_BYTES_OFFSET + 8], "little")
    report.compare(where, "sw_xfeatures", hex(sw_xfeatures), row["sw_xfeatures"])
    report.compare(where, "image", ours.hex(), theirs.hex())


def _compare_write(report: Report, where: str, config: FpuConfig, original: bytes, row: dict[str, Any]) -> None:
    fpu = _child(config, original)
    report.compare(where, "verdict", ptrace_setregset(fpu, changed(original, row["input"])).name, row["verdict"])
    after = _read(fpu)
    ours: dict[str, object] = {f"after_{name}": hex(_get(after, name)) for name in _FIELDS}
    for key, value in (ours | {"after_len": len(after)}).items():
        if key in row:
            report.compare(where, key, value, row[key])


def changed(image: bytes, text: str) -> bytes:
    """The image with what ``text`` says: a field and its value, a byte of the header, or another length.

    Raises ``ValueError`` for words that are none of these.
    """
    length = _LENGTH.fullmatch(text)
    if length is not None:
        return image[: int(length[1])].ljust(int(length[1]), b"\0")
    out = bytearray(image)
    byte = _HEADER_BYTE.fullmatch(text)
    if byte is not None:
        out[XSTATE_BV_OFFSET + int(byte[1])] = int(byte[2])
        return bytes(out)
    for word in text.split():
        name, _, value = word.partition("=")
        if name not in _FIELDS:
            raise ValueError(f"expected len=, header byte, or one of {', '.join(_FIELDS)}, got {text!r}")
        at, form = _FIELDS[name]
        struct.pack_into(form, out, at, _value(value))
    return bytes(out)


def _value(text: str) -> int:
    """``0x1f80``, ``7``, ``bit14``, or several of them with ``|`` between."""
    value = 0
    for part in text.split("|"):
        value |= 1 << int(part.removeprefix("bit")) if part.startswith("bit") else int(part, 0)
    return value


def _get(image: bytes, name: str) -> int:
    at, form = _FIELDS[name]
    return int(struct.unpack_from(form, image, at)[0])
