"""Judge the core against recorded data: what a real kernel answered, row by row.

    python -m tests.differential layouts FILE      boot configuration and image sizes that Linux computed from a CPUID
    python -m tests.differential sequences FILE    call sequences run by the kernel's own FPU code, step by step

The last line is the figure, "layouts: 29 rows (12 truncated), 0 differ"; before it comes the first difference, if any.
Status 0: no row differs. 1: some do. 2: there was nothing to judge, or the file could not be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from tests.differential import layouts, sequences
from tests.differential.report import Report

KINDS: dict[str, Callable[[Path, str], Report]] = {"layouts": layouts.run, "sequences": sequences.run}


def main(argv: list[str] | None = None) -> int:
    """Judge one file; the last line printed is the figure."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.differential",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=sorted(KINDS), help="what the file holds")
    parser.add_argument("file", type=Path, help="a data file, .json or .json.gz")
    parser.add_argument(
        "--name", default="", metavar="PREFIX", help="only rows whose name (layouts: whose cpu) starts so"
    )
    parser.add_argument("--all", action="store_true", help="print every difference, not only the first")
    args = parser.parse_args(argv)
    try:
        report = KINDS[args.kind](args.file, args.name)
    except (OSError, EOFError, ValueError, KeyError, TypeError, sequences.NotModelledError) as error:
        print(f"{args.kind}: {args.file}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if not report.rows:
        print(f"{args.kind}: {args.file}: no row to judge, so this proves nothing", file=sys.stderr)
        return 2
    for line in report.lines(len(report.differences) if args.all else 1):
        print(line)
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())
