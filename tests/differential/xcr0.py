"""Which values of XCR0 are legal: four recordings of it, told apart by their keys.

kvm_set_xcrs                KVM_SET_XCRS of a real KVM, and what it says to odd requests
kvm_guest_xsetbv            XSETBV by real guest code
kvm_set_cpuid2_xcr0         what KVM_SET_CPUID2 says to a leaf 0xD, on a process without permission
kernel612_kvm_set_xcr       the kernel's check of every combination of bits, where only accepted values are listed
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from fpu_core.errors import Errno
from host_agent.kvm.cpuid import GuestCpuid
from host_agent.kvm.intercept import handle_xsetbv
from host_agent.kvm.outcome import Done
from host_agent.kvm.set_cpuid import guest_cpuid, set_cpuid2
from host_agent.kvm.vcpu import Vcpu
from host_agent.kvm.xcr0 import moves_cpuid, xcr0_error
from host_agent.kvm.xcrs_ioctl import Xcr, get_xcrs, set_xcrs
from tests.differential.kvm_host import SUPPORTED_XCR0, enter, fresh_vcpu
from tests.differential.report import NotModelledError, Report, load_file, rows_of

_ODDITY = re.compile(r"(xcr_index|nr_xcrs|flags)_(\d+)")


def run(path: Path, name_prefix: str = "") -> Report:
    """Judge every value of ``path``; ``name_prefix`` picks values that are written so."""
    data = load_file(path)
    report = Report("xcr0")
    _form_of(data)(report, data, name_prefix)
    return report


def _form_of(data: dict[str, Any]) -> Callable[[Report, dict[str, Any], str], None]:
    if "bits_tried" in data:
        return _kernel_check
    keys = set(chain.from_iterable(rows_of(data)))
    if "leaf_d0_xcr0" in keys:
        return _set_cpuid2
    if "ecx_1_value_1" in data or any(row.get("verdict") == "#GP" for row in rows_of(data)):
        return _guest_xsetbv
    if "cpuid_set" in keys or not keys:
        return _set_xcrs
    raise NotModelledError(f"no known form: keys {sorted(data)}, rows with {sorted(keys)}")


def _guest_supported(row: dict[str, Any]) -> int:
    """Zero before the first KVM_SET_CPUID2; afterwards all: this KVM overwrites what was set (the file's caveat)."""
    return SUPPORTED_XCR0 if row["cpuid_set"] else 0


def _set_xcrs(report: Report, data: dict[str, Any], prefix: str) -> None:
    supported = data.get("effective_supported_xcr0", {})
    for key, cpuid_set in (("no KVM_SET_CPUID2 yet", False), ("after KVM_SET_CPUID2", True)):
        if key in supported:
            ours = hex(_guest_supported({"cpuid_set": cpuid_set}))
            report.compare("effective_supported_xcr0", key, ours, supported[key])
    for row in rows_of(data):
        if not row["xcr0"].startswith(prefix):
            continue
        report.rows += 1
        vcpu = fresh_vcpu(cpuid=_guest_supported(row))
        verdict = _verdict(set_xcrs(vcpu, [Xcr(0, int(row["xcr0"], 16))]))
        where = f"KVM_SET_XCRS {row['xcr0']}, cpuid_set={row['cpuid_set']}"
        report.compare(where, "verdict", verdict, row["verdict"])
        report.compare(where, "xcr0_after", _xcr0(get_xcrs(vcpu)), row["xcr0_after"])
    for row in data.get("oddities", []):
        if row["input"].startswith(prefix):
            report.rows += 1
            report.compare(f"KVM_SET_XCRS {row['input']}", "verdict", _verdict(_odd(row["input"])), row["verdict"])


def _odd(text: str) -> object:
    """A request that is odd in one thing; the value is 1 throughout."""
    match = _ODDITY.fullmatch(text)
    if match is None:
        raise NotModelledError(f"oddity {text!r}: expected xcr_index_N, nr_xcrs_N or flags_N")
    what, number = match[1], int(match[2])
    vcpu = fresh_vcpu(cpuid=None)
    if what == "xcr_index":
        return set_xcrs(vcpu, [Xcr(number, 1)])
    if what == "nr_xcrs":
        return set_xcrs(vcpu, [Xcr(0, 1)] * number)
    return set_xcrs(vcpu, [Xcr(0, 1)], flags=number)


def _guest_xsetbv(report: Report, data: dict[str, Any], prefix: str) -> None:
    for row in rows_of(data):
        if not row["xcr0"].startswith(prefix):
            continue
        report.rows += 1
        vcpu = fresh_vcpu(cpuid=_guest_supported(row))
        enter(vcpu)
        where = f"XSETBV {row['xcr0']}, cpuid_set={row['cpuid_set']}"
        report.compare(
            where, "verdict", _fault(handle_xsetbv(vcpu, index=0, value=int(row["xcr0"], 16))), row["verdict"]
        )
        report.compare(where, "xcr0_after", hex(vcpu.xcr0), row["xcr0_after"])
    if "ecx_1_value_1" in data and "ecx_1_value_1".startswith(prefix):
        report.rows += 1
        vcpu = fresh_vcpu(cpuid=None)
        enter(vcpu)
        report.compare(
            "XSETBV ecx=1", "ecx_1_value_1", _fault(handle_xsetbv(vcpu, index=1, value=1)), data["ecx_1_value_1"]
        )


def _set_cpuid2(report: Report, data: dict[str, Any], prefix: str) -> None:
    """KVM_SET_CPUID2 under mainline's policy: a dynamic bit in leaf 0xD takes memory there, and needs permission."""
    for row in rows_of(data):
        if not row["leaf_d0_xcr0"].startswith(prefix):
            continue
        report.rows += 1
        vcpu = fresh_vcpu(cpuid=None, policy="on_cpuid")
        errno = set_cpuid2(vcpu, _with_leaf_d0(vcpu, int(row["leaf_d0_xcr0"], 16)))
        where = f"KVM_SET_CPUID2 {row['leaf_d0_xcr0']}"
        report.compare(where, "set_cpuid2_errno", int(errno), row["set_cpuid2_errno"])
        report.compare(where, "errno_name", errno.name, row["errno_name"])
        # This KVM overwrites EAX and EDX with all the host supports (the file's caveat); EBX follows XCR0, which is 1.
        leaf = (SUPPORTED_XCR0, guest_cpuid(vcpu, 0xD).ebx, 0) if errno is Errno.OK else (0, 0, 0)
        ours = dict(zip(("eax", "ebx", "edx"), map(hex, leaf), strict=True))
        report.compare(where, "get_cpuid2_leaf_d0", ours, row["get_cpuid2_leaf_d0"])


def _with_leaf_d0(vcpu: Vcpu, xcr0: int) -> GuestCpuid:
    """What KVM_GET_SUPPORTED_CPUID gives, with EDX:EAX of leaf 0xD.0 replaced."""
    table = tuple(
        replace(entry, eax=xcr0 & 0xFFFF_FFFF, edx=xcr0 >> 32) if (entry.function, entry.index) == (0xD, 0) else entry
        for entry in vcpu.vm.supported_cpuid(vcpu.vm.permitted_xcr0)
    )
    return GuestCpuid(table, vcpu.vm.caps)


def _kernel_check(report: Report, data: dict[str, Any], prefix: str) -> None:
    """Every combination of the bits tried, for every mask of supported bits; the file lists the accepted ones."""
    accepted = {(int(supported, 16), int(xcr0, 16)): updated for supported, xcr0, updated in rows_of(data, "accepted")}
    tried = set()
    for supported in (int(text, 16) for text in data["supported_tried"] if text.startswith(prefix)):
        for xcr0 in _combinations(data["bits_tried"]):
            report.rows += 1
            tried.add((supported, xcr0))
            ours = None if xcr0_error(0, xcr0, supported) is not None else int(moves_cpuid(1, xcr0))
            where = f"__kvm_set_xcr {xcr0:#x}, supported {supported:#x}"
            report.compare(where, "accepted, CPUID updated", ours, accepted.get((supported, xcr0)))
    for supported, xcr0 in sorted(accepted.keys() - tried) if not prefix else ():
        report.compare(f"__kvm_set_xcr {xcr0:#x}", "a value among those tried", "not tried", hex(supported))


def _combinations(bits: list[int]) -> list[int]:
    values = [0]
    for bit in bits:
        values += [value | 1 << bit for value in values]
    return values


def _verdict(result: object) -> str:
    return result.name if isinstance(result, Errno) else "OK"


def _fault(result: object) -> str:
    return "OK" if isinstance(result, Done) else "#GP"


def _xcr0(xcrs: list[Xcr] | Errno) -> str:
    assert not isinstance(xcrs, Errno)
    return hex(xcrs[0].value)
