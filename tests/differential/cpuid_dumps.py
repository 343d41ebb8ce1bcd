"""cpuid_layouts: leaf 0xD of real processors, against what the model's tables make of it.

No kernel answered here, so what is judged is what a processor says twice: the sizes in 0xD.0 and 0xD.1 follow from the
sub-leaves, for the whole mask or for some XCR0 and XSS that can have been in force when the dump was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from fpu_core.config import boot
from fpu_core.cpuid import CpuidProfile, CpuidRegs
from fpu_core.errors import FieldError
from fpu_core.layout import XSAVE_EXTENDED_OFFSET, ComponentTable
from fpu_core.xfeature import XFEATURE_MASK_APX, XFEATURE_MASK_FPSSE, for_each_set_bit
from host_agent.kvm.xcr0 import xcr0_error
from tests.differential.report import Report

#: The components the loader insists on; others (LWP, bit 62) are never used by a kernel.
_NEEDED = range(2, 20)


def compare_row(report: Report, row: dict[str, Any]) -> bool:
    """Judge one dump; True where it is truncated, which the loader must say of it."""
    leaves = _leaves(row)
    missing = _missing(leaves)
    try:
        profile = CpuidProfile(row["cpu"], leaves)
    except FieldError as refused:
        report.compare(
            row["cpu"], "the refusal names the missing sub-leaves", refused.expected.split(" report")[0], missing
        )
        return True
    report.compare(row["cpu"], "a truncated dump is refused", "accepted" if missing else "", missing)
    if profile.xcr0_mask:
        _compare(report, profile)
    else:
        report.compare(row["cpu"], "no leaf 0xD, no XSAVE", boot(profile).xsave, bool(profile.regs(0xD, 0).ecx))
    return bool(missing)


def _leaves(row: dict[str, Any]) -> dict[tuple[int, int], CpuidRegs]:
    return {
        (int(key.removeprefix("leaf_"), 16), int(subleaf)): CpuidRegs(
            *(int(regs[name], 16) for name in ("eax", "ebx", "ecx", "edx"))
        )
        for key, subleaves in row.items()
        if key.startswith("leaf_")
        for subleaf, regs in subleaves.items()
    }


def _missing(leaves: dict[tuple[int, int], CpuidRegs]) -> str:
    """What the loader must complain of, in its words: reported by 0xD.0 or 0xD.1, and no sub-leaf or one of size 0."""
    none = CpuidRegs(0, 0, 0, 0)
    first, second = leaves.get((0xD, 0), none), leaves.get((0xD, 1), none)
    reported = first.eax | second.ecx | (first.edx | second.edx) << 32
    found = [nr for nr in for_each_set_bit(reported) if nr in _NEEDED and not leaves.get((0xD, nr), none).eax]
    return f"sub-leaves {', '.join(f'0xD.{nr}' for nr in found)}, which 0xD.0 or 0xD.1" if found else ""


def _compare(report: Report, profile: CpuidProfile) -> None:
    where = profile.name
    try:
        table = ComponentTable.from_profile(profile)
    except FieldError as refused:
        report.compare(where, "its components contradict each other", str(refused), "")
        return
    size = table.calculate_size(profile.xcr0_mask, compacted=False)
    report.compare(where, "0xD.0 ECX, the size of everything", size, profile.regs(0xD, 0).ecx)
    for nr, component in table.components.items():
        if nr >= 2:
            supervisor = bool(profile.xss_mask >> nr & 1)
            report.compare(where, f"0xD.{nr} ECX[0], supervisor", component.supervisor, supervisor)
            report.compare(where, f"0xD.{nr} EBX, none for a supervisor component", *_offset_rule(profile, nr))
    capable = any(component.xfd_capable for component in table.components.values())
    report.compare(where, "XFD is there where a component can have it", capable, profile.caps.XFD)
    report.compare(where, "components overlap", list(_overlaps(table)), [])
    _compare_sizes_in_force(report, profile, table)
    config = boot(profile)
    if config.user.max_features == profile.xcr0_mask:
        report.compare(where, "user size, where the kernel knows every component", config.user.max_size, size)


def _offset_rule(profile: CpuidProfile, nr: int) -> tuple[bool, bool]:
    """Whether the component has an offset in the standard format, and whether it should."""
    return profile.regs(0xD, nr).ebx >= XSAVE_EXTENDED_OFFSET, not profile.xss_mask >> nr & 1


def _overlaps(table: ComponentTable) -> Iterator[tuple[int, int]]:
    """Pairs of components that share bytes in the standard format. APX may: it sits in the slot of MPX."""
    ends = sorted(
        (component.std_offset, component.std_offset + component.size_bytes, nr)
        for nr, component in table.components.items()
        if component.std_offset is not None and nr >= 2 and not 1 << nr & XFEATURE_MASK_APX
    )
    for (_, end, nr), (start, _, following) in pairwise(ends):
        if start < end:
            yield nr, following


def _compare_sizes_in_force(report: Report, profile: CpuidProfile, table: ComponentTable) -> None:
    """0xD.0 EBX is the size for XCR0 as it was, 0xD.1 EBX the compacted one for XCR0 and XSS as they were."""
    standard, compacted = profile.regs(0xD, 0).ebx, profile.regs(0xD, 1).ebx
    fitting = [xcr0 for xcr0 in _legal_xcr0(profile) if table.calculate_size(xcr0, compacted=False) == standard]
    report.compare(profile.name, "0xD.0 EBX is the size of some XCR0", bool(fitting) and standard, standard)
    if profile.caps.xcompacted:
        sizes = {
            table.calculate_size(xcr0 | xss, compacted=True) for xcr0 in fitting for xss in _subsets(profile.xss_mask)
        }
        ours = compacted if compacted in sizes else sorted(sizes)
        report.compare(profile.name, "0xD.1 EBX is the compacted size of that XCR0 and some XSS", ours, compacted)
    else:
        report.compare(profile.name, "0xD.1 EBX, without the compacted format", 0, compacted)


def _legal_xcr0(profile: CpuidProfile) -> list[int]:
    mask = profile.xcr0_mask
    return [xcr0 for xcr0 in _subsets(mask & ~1, 1) if xcr0_error(0, xcr0, mask | XFEATURE_MASK_FPSSE) is None]


def _subsets(mask: int, always: int = 0) -> list[int]:
    found = [always]
    for nr in for_each_set_bit(mask):
        found += [subset | 1 << nr for subset in found]
    return found
