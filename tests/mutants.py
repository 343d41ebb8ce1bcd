"""Every mutant of the museum before the ordinary suites: each must be noticed, and the healthy core must pass.

    python -m tests.mutants                   all of them, and the control
    python -m tests.mutants B4 B42 --jobs 1   some
    python -m tests.mutants --quick           without the property machines where nothing else notices

A line a mutant: what noticed (an invariant or, where none was named, the check that failed), where, the steps of the
smallest counterexample, and the time it took. The last line is "mutants: N, caught: N". Status 0: all were caught. 1:
not so, or the control failed, after which no mutant is tried. 2: no such mutant.

A mutant is caught if an ordinary scenario, property or test fails on it *and* the scenario of its page deviates. What
fails on nothing but a page is not caught: the page is written for the mutant.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.museum.mutant import ROOT
from tests.museum.mutants import MUTANTS
from tests.museum.trial import CONTROL, Verdict

#: Longer than any suite here takes on a slow machine: a mutant that hangs is one that is not caught.
_TIMEOUT_S = 600


def main(argv: list[str] | None = None) -> int:
    """Try the mutants, each in a process of its own; the last line printed is the figure."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants such as B42; all and the control for none")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="so many at a time (2)")
    parser.add_argument("--quick", action="store_true", help="leave the property machines out")
    args = parser.parse_args(argv)
    names = [name.upper() for name in args.names]
    if unknown := [name for name in names if name not in MUTANTS]:
        print(f"mutants: no {', '.join(unknown)}; there are {', '.join(MUTANTS)}", file=sys.stderr)
        return 2
    control, _seconds = _try(CONTROL, quick=args.quick)
    if control.by or control.error:
        print(f"control: {_failure(control)}")
        print("the healthy core does not pass, so what fails on a mutant would mean nothing", file=sys.stderr)
        return 1
    print("control: passed", flush=True)
    caught = 0
    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        for verdict, seconds in pool.map(lambda name: _try(name, quick=args.quick), names or MUTANTS):
            caught += verdict.caught
            print(_line(verdict, seconds), flush=True)
    total = len(names or MUTANTS)
    print(f"mutants: {total}, caught: {caught}")
    return 0 if caught == total else 1


def _try(name: str, *, quick: bool) -> tuple[Verdict, float]:
    started = time.monotonic()
    command = [sys.executable, "-m", "tests.museum.trial", name, *(["--quick"] if quick else [])]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Verdict(name, error=f"no verdict within {_TIMEOUT_S} s"), time.monotonic() - started
    if done.returncode != 0:
        return Verdict(name, error=done.stderr.strip() or f"status {done.returncode}"), time.monotonic() - started
    return Verdict(**json.loads(done.stdout.splitlines()[-1])), time.monotonic() - started


def _line(verdict: Verdict, seconds: float) -> str:
    if not verdict.caught:
        return f"{verdict.name:<4} NOT CAUGHT  {_failure(verdict)}  {seconds:.1f} s"
    where = "" if verdict.where == verdict.by else f"in {verdict.where}"
    return f"{verdict.name:<4} caught by {verdict.by}  {where}  {verdict.steps} steps  {seconds:.1f} s"


def _failure(verdict: Verdict) -> str:
    if verdict.error:
        return verdict.error
    if verdict.page_steps is None and verdict.name != CONTROL:
        return f"its page shows nothing; the suites: {verdict.by or 'nothing'}"
    return f"{verdict.where}: {verdict.text}" if verdict.by else "no suite notices"


if __name__ == "__main__":
    sys.exit(main())
