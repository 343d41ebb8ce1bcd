"""Command line: ``python -m tests.differential KIND FILE [--name PREFIX]``; status 1 and the first difference if any."""

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
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS), help="what the file holds")
    parser.add_argument("file", type=Path, help="a data file, .json or .json.gz")
    parser.add_argument("--name", default="", metavar="PREFIX", help="only rows whose name starts so")
    parser.add_argument("--all", action="store_true", help="print every difference, not only the first")
    args = parser.parse_args(argv)
    try:
        report = KINDS[args.kind](args.file, args.name)
    except (OSError, ValueError, KeyError, sequences.NotModelledError) as error:
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
