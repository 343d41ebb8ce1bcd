"""What ``fpstated compare-policies`` does with its options."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fpstated.compare_chart import svg
from fpstated.compare_guest import CompareError, GuestPlan
from fpstated.compare_policies import compare, mix
from fpstated.compare_table import table, to_json
from fpu_core.cpuid import builtin_profile_names
from guest_agent.script_parser import ScriptError, load_script


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """As on the command line. ``json`` is a file, ``-`` for standard output in place of the table, or empty."""

    script: Path | None
    profile: str
    fail_nth: int
    json: str
    svg: str


def run_compare(options: CompareOptions) -> int:
    """Compare, print, write; returns the status."""
    if options.profile not in builtin_profile_names():
        return _refuse(f"--profile: expected one of {', '.join(builtin_profile_names())}, got {options.profile!r}", 2)
    try:
        plans = mix() if options.script is None else (GuestPlan("script", load_script(options.script)),)
    except (OSError, UnicodeDecodeError, ScriptError) as error:
        return _refuse(f"--script: {error}", 2)
    what = "the mix" if options.script is None else options.script.name
    try:
        found = compare(plans, what=what, profile=options.profile, fail_nth=options.fail_nth)
    except CompareError as error:
        return _refuse(str(error), 1)
    print(to_json(found) if options.json == "-" else table(found), end="" if options.json == "-" else "\n")
    written = {options.json: to_json, options.svg: svg}
    try:
        for path, text in written.items():
            if path not in ("", "-"):
                Path(path).write_text(text(found), encoding="utf-8")
    except OSError as error:
        return _refuse(f"cannot write: {error}", 1)
    return 0


def _refuse(text: str, status: int) -> int:
    print(f"fpstated compare-policies: {text}", file=sys.stderr)
    return status
