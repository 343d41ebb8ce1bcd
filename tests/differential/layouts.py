"""kernel612_boot_config: what Linux 6.12 computes at boot from a processor's CPUID, against ours.

A file of bare dumps (cpuid_layouts: rows without ``result``) is judged too, by what a processor says twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fpu_core.config import FpuConfig, boot
from fpu_core.cpuid import CpuCaps, CpuidProfile, CpuidRegs
from fpu_core.errors import FieldError
from fpu_core.fpstate import task_fpstate
from fpu_core.rules import KERNEL_6_12
from fpu_core.xfeature import for_each_set_bit
from tests.differential import cpuid_dumps
from tests.differential.report import Report, load_rows
from tests.differential.snapshot import container_of

#: Left out of ``result``: what the shim observed of its own hardware, not what the kernel computed.
_NOT_COMPARED = {"warns", "trace", "tif_need_fpu_load"}


def run(path: Path, name_prefix: str = "") -> Report:
    """Judge every row of ``path``; truncated dumps must be refused by the profile loader and are only counted."""
    report = Report("layouts")
    truncated = 0
    for row in load_rows(path):
        if not row["cpu"].startswith(name_prefix):
            continue
        report.rows += 1
        if "result" not in row:
            truncated += cpuid_dumps.compare_row(report, row)
        elif row["dump_missing_subleaves"]:
            truncated += 1
            _expect_refusal(report, row)
        else:
            _compare_row(report, row)
    report.extra = f" ({truncated} truncated)"
    return report


def profile_of_row(row: dict[str, Any]) -> CpuidProfile:
    """The processor of a row: leaf 0xD and the capability flags are all that it has. ``FieldError`` if truncated."""
    leaves = {
        (0xD, int(subleaf)): CpuidRegs(*(int(regs[name], 16) for name in ("eax", "ebx", "ecx", "edx")))
        for subleaf, regs in row["leaf_d"].items()
    }
    caps = CpuCaps(**{name: bool(value) for name, value in row["caps"].items() if name in CpuCaps._fields})
    return CpuidProfile(row["cpu"], leaves, caps)


def _expect_refusal(report: Report, row: dict[str, Any]) -> None:
    names = [f"0xD.{nr}" for nr in row["dump_missing_subleaves"]]
    try:
        profile_of_row(row)
    except FieldError as refused:
        if not all(name in refused.expected for name in names):
            report.compare(row["cpu"], "the refusal names the missing sub-leaves", refused.expected, names)
    else:
        report.compare(row["cpu"], "a truncated dump is refused", "accepted", names)


def _compare_row(report: Report, row: dict[str, Any]) -> None:
    try:
        config = boot(profile_of_row(row), KERNEL_6_12)
    except FieldError as refused:
        report.compare(row["cpu"], "its components contradict each other", str(refused), "")
        return
    ours = _result(config)
    for key, theirs in row["result"].items():
        if key in _NOT_COMPARED or key.startswith("hw_"):
            continue
        report.compare(row["cpu"], key, ours.get(key), theirs)
    report.compare(row["cpu"], "task_fpstate", container_of(task_fpstate(config), "task_builtin"), row["task_fpstate"])
    for size in row["sizes"]:
        mask = int(size["mask"], 16)
        for kind in ("compacted", "standard"):
            if kind in size:
                ours_size = config.table.calculate_size(mask, compacted=kind == "compacted")
                report.compare(row["cpu"], f"{kind} size of {size['mask']}", ours_size, size[kind])


def _result(config: FpuConfig) -> dict[str, object]:
    perm = [hex(config.kernel.default_features), config.kernel.default_size, config.user.default_size]
    return {
        "kernel_max_features": hex(config.kernel.max_features),
        "kernel_default_features": hex(config.kernel.default_features),
        "kernel_max_size": config.kernel.max_size,
        "kernel_default_size": config.kernel.default_size,
        "user_max_features": hex(config.user.max_features),
        "user_default_features": hex(config.user.default_features),
        "user_max_size": config.user.max_size,
        "user_default_size": config.user.default_size,
        "independent_features": hex(config.independent_features),
        "init_fpstate_xfd": hex(config.init_xfd),
        "compacted": int(config.compacted),
        "components": _components(config),
        "perm": perm,
        "guest_perm": perm,
        "xfd_cache": hex(config.init_xfd),
    }


def _components(config: FpuConfig) -> dict[str, dict[str, int]]:
    mask = config.kernel.max_features
    kernel_offsets = config.table.offsets(mask, compacted=config.compacted)
    found = {}
    for nr in for_each_set_bit(mask):
        component = config.table.components[nr]
        std_offset = -1 if component.std_offset is None else component.std_offset
        found[str(nr)] = {"std_offset": std_offset, "size": component.size_bytes, "kernel_offset": kernel_offsets[nr]}
    return found
