"""The text of an export: a POSIX shell script that arms, runs a command, and puts back what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fault_lab.linux_export import KernelFault, LinuxExport

#: What the kernel's defaults would do to the fault.
_DEFAULTS: Final = {
    "times": "default 1: once",
    "probability": "default 0: never",
    "min-order": "default 1: pages of order 0 are left alone, and vzalloc() takes no others",
    "ignore-gfp-wait": "default Y: what may sleep is left alone",
    "ignore-gfp-highmem": "default Y: what may lie in high memory is left alone",
    "cache-filter": "default N: every slab cache",
}

_HEAD: Final = """#!/bin/sh
# Made from the plan {plan} by `fpstated faults export --linux`. Run it as root:
#
#     {name} COMMAND [ARGUMENT]...
#
# Faults are armed for the command and what it starts, and everything is as it was when the command has ended.
{warnings}set -eu

DEBUGFS=${{DEBUGFS:-/sys/kernel/debug}}
PROC=${{PROC:-/proc}}
SYS=${{SYS:-/sys}}

complain() {{ echo "$0: $*" >&2; exit 1; }}
[ $# -gt 0 ] || complain "expected a command to run"
"""

_SAVE: Final = """
restore=$(mktemp)
heal() {
\ttrap - EXIT INT TERM
\t. "$restore"
\trm -f "$restore"
}
trap heal EXIT
trap 'heal; exit 130' INT
trap 'heal; exit 143' TERM

# set_value FILE VALUE: write a value, and remember to write back what was there.
set_value() {
\t[ -w "$1" ] || complain "$1 cannot be written"
\tprintf 'echo "%s" > "%s"\\n' "$(cat "$1")" "$1" | cat - "$restore" > "$restore.new"
\tmv "$restore.new" "$restore"
\techo "$2" > "$1"
}
"""

_RUN: Final = """
[ -w "$PROC/self/make-it-fail" ] || complain "$PROC/self/make-it-fail: the kernel lacks CONFIG_FAULT_INJECTION"
status=0
{run} || status=$?
exit "$status"
"""


def debugfs_script(export: LinuxExport) -> str:
    """A script over debugfs alone."""
    parts = [_HEAD.format(plan=export.plan, name=f"{export.plan}.sh", warnings=_comments(export))]
    parts += [_need(fault) for fault in export.faults]
    parts.append(_SAVE)
    parts += [_armed(fault) for fault in export.faults]
    nth = next((fault.fail_nth for fault in export.faults if fault.fail_nth), 0)
    fail_nth = f'echo {nth} > "$PROC/self/fail-nth" && ' if nth else ""
    run = f"""PROC=$PROC sh -c 'echo 1 > "$PROC/self/make-it-fail" && {fail_nth}exec "$@"' sh "$@\""""
    parts.append(_RUN.format(run=run))
    return "".join(parts)


def failcmd_script(export: LinuxExport) -> str:
    """One call of the kernel's tools/testing/fault-injection/failcmd.sh a fault; each runs the command."""
    lines = ["#!/bin/sh", f"# Made from the plan {export.plan} by `fpstated faults export --linux --failcmd`.", "#"]
    lines += [f"# warning: {text}" for text in export.warnings]
    lines += ["set -eu", "FAILCMD=${FAILCMD:-tools/testing/fault-injection/failcmd.sh}"]
    for fault in export.faults:
        name = fault.capability.name
        if name not in ("failslab", "fail_page_alloc") or fault.fail_nth or fault.capability.cache:
            why = "fail-nth" if fault.fail_nth else fault.capability.cache or name
            lines.append(f"# {fault.name}: failcmd.sh has no way for {why}: use the debugfs script")
            continue
        left_out = ("verbose_ratelimit_interval_ms", "verbose_ratelimit_burst", "cache-filter")
        options = [f"--{key}={value}" for key, value in fault.settings.items() if key not in left_out]
        lines += [f"# {fault.name}", f'FAILCMD_TYPE={name} "$FAILCMD" \\', *(f"\t{each} \\" for each in options)]
        lines.append('\t-- "$@"')
    return "\n".join(lines) + "\n"


def _comments(export: LinuxExport) -> str:
    return "".join(f"# warning: {text}\n" for text in export.warnings)


def _need(fault: KernelFault) -> str:
    capability = fault.capability
    folder = f"$DEBUGFS/{capability.name}"
    complaint = f"no {folder}: is debugfs mounted, has the kernel {capability.config}?"
    lines = [f'[ -d "{folder}" ] || complain "{complaint}"']
    if capability.name == "fail_make_request":
        lines.append('[ -n "${DEVICE:-}" ] || complain "set DEVICE to the block device of the journal, such as sda"')
    return "".join(f"{line}\n" for line in lines)


def _armed(fault: KernelFault) -> str:
    capability = fault.capability
    lines = [f"\n# {fault.name}\n"]
    if capability.cache:
        lines.append(f'set_value "$SYS/kernel/slab/{capability.cache}/failslab" 1\n')
    if capability.name == "fail_make_request":
        lines.append('set_value "$SYS/block/$DEVICE/make-it-fail" 1\n')
    for key, value in fault.settings.items():
        why = f"  # {_DEFAULTS[key]}" if key in _DEFAULTS else ""
        lines.append(f'set_value "$DEBUGFS/{capability.name}/{key}" {value}{why}\n')
    return "".join(lines)
