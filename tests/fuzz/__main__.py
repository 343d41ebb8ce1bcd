"""``python -m tests.fuzz --seconds N [--seed S]``: hostile input against a live host; the last line has the figures."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.block import Findings
from tests.fuzz.failure import read_failure, repeat
from tests.fuzz.run import Run
from tests.live.host import LiveHost
from tests.service.certificates import Certificates


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; status 1 where anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to go on (default 10)")
    parser.add_argument("--seed", type=int, default=None, help="of all chance; a new one is drawn and printed")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="where failures are written")
    parser.add_argument("--no-shrink", action="store_true", help="leave a failure as it is")
    parser.add_argument("--input", type=Path, metavar="FILE", help="send the inputs of this file only, to a new host")
    asked = parser.parse_args(arguments)
    if asked.input is not None:
        return _repeat(asked.input)
    seed = asked.seed if asked.seed is not None else secrets.randbelow(1 << 32)
    print(f"seed {seed}; again: python -m tests.fuzz --seconds {asked.seconds:g} --seed {seed}", flush=True)
    run = Run(seed, asked.seconds, asked.folder, shrink=not asked.no_shrink)
    run.run()
    _say_codes(run.codes)
    if run.rss_kib:
        print(f"blocks: {run.blocks}, resident after the first {run.rss_kib[0]:,}, the last {run.rss_kib[-1]:,} KiB")
    if run.found:
        print(f"the inputs of the block: {run.failure_path}")
        if run.smallest_path.exists():
            print(f"the fewest that fail: python -m tests.fuzz --input {run.smallest_path}")
    return _verdict(run.inputs, run.found)


def _repeat(path: Path) -> int:
    ids, inputs = read_failure(path)
    with tempfile.TemporaryDirectory(prefix="fpstated-fuzz-") as scratch:
        host = LiveHost(Path(scratch), certificates=Certificates(Path(scratch) / "certs"))
        return _verdict(len(inputs), repeat(lambda: host, ids, inputs))


def _say_codes(codes: Counter[tuple[str, str]]) -> None:
    by_code: Counter[str] = Counter()
    for (_, code), count in codes.items():
        by_code[code] += count
    print("answers: " + ", ".join(f"{code} {count}" for code, count in by_code.most_common()))


def _verdict(inputs: int, found: Findings) -> int:
    for kind, entries in (("crash", found.crashes), ("violation", found.violations), ("leak", found.leaks)):
        for entry in entries:
            print(f"{kind}: {entry}")
    counts = f"crashes: {len(found.crashes)}, invariant violations: {len(found.violations)}, leaks: {len(found.leaks)}"
    print(f"inputs: {inputs:,}, {counts}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
