"""Search simulated runs for every bug of the museum, each mutant in a process of its own.

    python -m tests.sim.museum [NAME ...] [--jobs N]

A line a mutant: its plan, the seed of the first violation, the check and what it found. The last line is
"museum in the simulator: N, caught: N". Status 0: all were caught, by a check that speaks of the bug. 1: not so.
2: no such mutant.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.museum.mutant import ROOT
from tests.sim.museum.table import SEEDS, SHOWN

#: Sixty runs take some seconds; a mutant that hangs is one that is not caught.
_TIMEOUT_S = 300


def main(argv: list[str] | None = None) -> int:
    """Search."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.museum", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants such as B42; all for none")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="so many at a time (2)")
    args = parser.parse_args(argv)
    names = [name.upper() for name in args.names] or list(SHOWN)
    if unknown := [name for name in names if name not in SHOWN]:
        print(f"museum: no {', '.join(unknown)}; there are {', '.join(SHOWN)}", file=sys.stderr)
        return 2
    caught = 0
    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        for name, found in zip(names, pool.map(searched, names), strict=True):
            caught += found.get("check") in SHOWN[name].checks
            print(_line(name, found), flush=True)
    print(f"museum in the simulator: {len(names)}, caught: {caught}")
    return 0 if caught == len(names) else 1


def searched(name: str) -> dict[str, Any]:
    """What the first run with a violation found, in a process of its own."""
    command = [sys.executable, "-m", "tests.sim.museum.trial", name, "0", str(SEEDS), str(SHOWN[name].path)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"text": f"no verdict within {_TIMEOUT_S} s"}
    if done.returncode:
        return {"text": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _line(name: str, found: dict[str, Any]) -> str:
    plan = SHOWN[name].plan
    if found.get("check") not in SHOWN[name].checks:
        return f"{name:<4} NOT CAUGHT in {SEEDS} runs of {plan}: {found.get('check', '')} {found.get('text', '')}"
    text = str(found["text"]).splitlines()[0][:90]
    return f"{name:<4} {plan:<11} seed {found['seed']:<3} step {found['step']:<4} {found['check']}: {text}"


if __name__ == "__main__":
    sys.exit(main())
