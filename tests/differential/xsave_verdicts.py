"""kvm_set_xsave_verdicts: KVM_SET_XSAVE of a real KVM with one edited buffer a row, and what KVM_GET_XSAVE2 says then.

Rows from before the first KVM_SET_CPUID2 and from after it; each starts with the buffer of a fresh vCPU.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fpu_core.errors import Errno
from fpu_core.layout import MXCSR_OFFSET, XCOMP_BV_OFFSET, XSTATE_BV_OFFSET
from host_agent.kvm.xsave_ioctl import get_xsave2, set_xsave
from tests.differential.kvm_host import SUPPORTED_XCR0, fresh_vcpu
from tests.differential.report import NotModelledError, Report, load_file, rows_of

#: The lists of the file, and what a guest may use by then.
_LISTS = {"rows_before_any_cpuid": 0, "rows_after_cpuid": SUPPORTED_XCR0}
#: Offset and form of what a row edits and reads back.
_FIELDS = {"xstate_bv": (XSTATE_BV_OFFSET, "<Q"), "xcomp_bv": (XCOMP_BV_OFFSET, "<Q"), "mxcsr": (MXCSR_OFFSET, "<I")}
_HEADER_BYTE = re.compile(r"header byte (\d+) ?= ?(0x[0-9a-f]+|\d+)")
_ASSIGNMENT = re.compile(r"(\w+)=((?:only )?[^=]*?)(?= \w+=|$)")
_TERM = re.compile(r"(?:only )?bit (?P<bit>\d+)|(?P<number>0x[0-9a-f]+|\d+)")


def run(path: Path, name_prefix: str = "") -> Report:
    """Judge the rows of both lists whose ``input`` starts with ``name_prefix``."""
    data = load_file(path)
    report = Report("xsave-verdicts")
    if "host_supported_xcr0" in data:
        report.compare("the host", "host_supported_xcr0", hex(SUPPORTED_XCR0), data["host_supported_xcr0"])
    for name in [name for name in _LISTS if name in data] or _LISTS:
        for row in rows_of(data, name):
            if row["input"].startswith(name_prefix):
                report.rows += 1
                _compare_row(report, name, row)
    return report


def _compare_row(report: Report, name: str, row: dict[str, Any]) -> None:
    vcpu = fresh_vcpu(cpuid=_LISTS[name])
    base = get_xsave2(vcpu)
    assert isinstance(base, bytes)
    result = set_xsave(vcpu, edited(base, row["input"]))
    after = get_xsave2(vcpu)
    assert isinstance(after, bytes)
    where = f"{name}, {row['input']!r}"
    report.compare(where, "verdict", result.name if isinstance(result, Errno) else "OK", row["verdict"])
    for field, (offset, form) in _FIELDS.items():
        report.compare(where, f"after_{field}", hex(*struct.unpack_from(form, after, offset)), row[f"after_{field}"])


def edited(base: bytes, text: str) -> bytes:
    """Return ``base`` as ``text`` says: 'as got', 'header byte 25 = 1', 'xstate_bv=3 mxcsr=0x1f80|bit 9', and so on."""
    buf = bytearray(base)
    if text == "as got":
        return base
    header_byte = _HEADER_BYTE.fullmatch(text)
    if header_byte is not None:
        buf[XSTATE_BV_OFFSET + int(header_byte[1])] = int(header_byte[2], 0)
        return bytes(buf)
    for field, value in _assignments(text):
        offset, form = _FIELDS[field]
        struct.pack_into(form, buf, offset, value)
    return bytes(buf)


def _assignments(text: str) -> Iterator[tuple[str, int]]:
    """Each ``field=value`` of ``text``; a value is numbers and bits with | between."""
    rest = text
    while rest:
        match = _ASSIGNMENT.match(rest)
        if match is None or match[1] not in _FIELDS:
            raise NotModelledError(f"input {text!r}: expected {', '.join(_FIELDS)} with '=' and a value, got {rest!r}")
        yield match[1], _value(match[2], text)
        rest = rest[match.end() :].lstrip()


def _value(value: str, text: str) -> int:
    found = 0
    for term in value.split("|"):
        match = _TERM.fullmatch(term.strip())
        if match is None:
            raise NotModelledError(f"input {text!r}: expected a number or 'bit N', got {term!r}")
        found |= 1 << int(match["bit"]) if match["bit"] else int(match["number"], 0)
    return found
