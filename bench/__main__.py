"""Command line: ``python -m bench [GROUP ...]``; status 0 when it could measure, whatever the figures say."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import durable, explore, journal, linear, memory, service, sim, swap, vcpus, wire
from bench.report import Row, print_table, write_json

GROUPS: dict[str, Callable[[int], Iterator[Row]]] = {
    "swap": swap.rows,
    "memory": memory.rows,
    "journal": journal.rows,
    "service": service.rows,
    "durable": durable.rows,
    "vcpus": vcpus.rows,
    "linear": linear.rows,
    "wire": wire.rows,
    "explore": explore.rows,
    "sim": sim.rows,
}


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"out of: {', '.join(GROUPS)}; all by default")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the JSON goes")
    parser.add_argument(
        "--quick", action="store_true", help="a fiftieth of everything: to see that it runs, not to compare"
    )
    parser.add_argument("--strict", action="store_true", help="status 1 if a row misses its goal")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.groups) - set(GROUPS))
    if unknown:
        parser.error(f"unknown group {', '.join(unknown)}: choose from {', '.join(GROUPS)}")
    rows = [row for name in args.groups or GROUPS for row in GROUPS[name](50 if args.quick else 1)]
    print_table(rows)
    write_json(rows, args.json)
    print(f"bench: {sum(row.ok for row in rows)} of {len(rows)} rows reach their goal; wrote {args.json}")
    return 1 if args.strict and not all(row.ok for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
