"""arch_prctl_6_18: what a real kernel answered to arch_prctl(2) and sigaltstack(2), call by call, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fpu_core.altstack import get_sigframe_size, sigaltstack
from fpu_core.fpu import Fpu
from fpu_core.permission import arch_prctl
from tests.differential.machine import recorded_machine, stopped_task
from tests.differential.report import Report, load_file, rows_of

#: Where the program that asked kept the answer; the data says "&u64". Its other addresses are not mapped.
_ANSWER: Final = 0x7FFF_0000_0000


def run(path: Path, name_prefix: str = "") -> Report:
    """Judge every call of ``path``: result, errno, value; then every sigaltstack(2) and the sizes libc reports."""
    data = load_file(path)
    rows = rows_of(data)
    report = Report("prctl")
    config = recorded_machine(data.get("obtained"))
    fpu = stopped_task(config)
    for nr, row in enumerate(rows):
        if row["op"].startswith(name_prefix):
            report.rows += 1
            _compare_call(report, f"row {nr} {row['op']}({row['arg']})", fpu, row)
    for nr, (size, verdict) in enumerate(data.get("sigaltstack", ())):
        report.compare(f"sigaltstack {nr}: {size} bytes", "errno", sigaltstack(fpu, size).name, verdict)
    for key in ("AT_MINSIGSTKSZ", "sysconf_MINSIGSTKSZ"):
        if key in data:
            report.compare("auxiliary vector", key, get_sigframe_size(config), data[key])
    return report


def _compare_call(report: Report, where: str, fpu: Fpu, row: dict[str, Any]) -> None:
    arg = _ANSWER if row["arg"] == "&u64" else int(row["arg"], 0)
    errno, value = arch_prctl(fpu, int(row["op_nr"], 0), arg, writable=lambda address: address == _ANSWER)
    ours: dict[str, object] = {
        "ret": -1 if errno else 0,
        "errno": int(errno),
        "errno_name": errno.name,
        "out": None if value is None else hex(value),
    }
    for key, value_of_ours in ours.items():
        report.compare(where, key, value_of_ours, row.get(key))
