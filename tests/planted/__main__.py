"""The fault lab before bugs that are known: each must be found, by at least one way of searching.

    python -m tests.planted                          all of them, after the healthy code was found clean
    python -m tests.planted lost-park B46            some
    python -m tests.planted --quick                  few runs a mode, only the smallest find is shrunk: minutes
    python -m tests.planted --modes random,pct       some modes

First the healthy code goes through every plan in every mode with the same bounds: what is found there is a bug of ours,
or of the lab's, and nothing is planted. Then a line for each bug: the check that found it, the runs that each mode took
(a dash: it found nothing), the faults left after shrinking, and the command that finds the same again. Then the modes:
how many bugs each has found, the medians of the runs and of the faults left.

The last line is "planted: N, caught: N, median faults: F". Status 0: all are caught, and F is 3 or less. 1: not so, or
the healthy code was not clean. 2: wrong words.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.museum.mutant import ROOT
from tests.planted.bugs import BUGS
from tests.planted.modes import EXHAUSTIVE, MODES, WORLDS
from tests.planted.outcome import Bounds, Tally, Trial
from tests.planted.report import lines_of, markdown, mode_table
from tests.planted.trial import CONTROL

_FAULTS_MAX = 3
#: Longer than any trial takes on a slow machine.
_TIMEOUT_S = 3600


def main(argv: list[str] | None = None) -> int:
    """Try the bugs, each in a process of its own; the last line printed is the figure."""
    args = _words(argv)
    names, modes = args.names or list(BUGS), tuple(args.modes.split(",") if args.modes else MODES)
    wrong = [f"no bug {name!r}; there are {', '.join(BUGS)}" for name in names if name not in BUGS]
    wrong += [f"no mode {mode!r}; there are {', '.join(MODES)}" for mode in modes if mode not in MODES]
    if wrong:
        print(*(f"planted: {each}" for each in wrong), sep="\n", file=sys.stderr)
        return 2
    runs, shrink = (args.runs or (20 if args.quick else 100)), (60 if args.quick else 300)
    bounds = Bounds(modes=modes, runs=runs, shrink=shrink, seed=args.seed, once=args.quick)
    says = sys.stderr if args.json or args.markdown else sys.stdout
    plans = [*dict.fromkeys(BUGS[name].plan for name in names), *(WORLDS if EXHAUSTIVE in modes else ())]
    for trial in _trials([f"{CONTROL}{plan}" for plan in plans], bounds, args.jobs):
        if trial.caught or trial.error:
            found = trial.caught[0] if trial.caught else None
            what = f"{found.mode}, {found.varied}: {found.check}: {found.text}" if found else trial.error
            print(f"{trial.name}: {what}", file=says)
            print("the healthy code is not clean, so what is found in another would mean nothing", file=sys.stderr)
            return 1
        print(f"{trial.name}: clean, {sum(find.runs for find in trial.finds)} runs  {trial.seconds:.1f} s", file=says)
    tally = Tally()
    for trial in _trials(names, bounds, args.jobs):
        tally.trials.append(trial)
        print(*lines_of(trial, bounds), sep="\n", file=says, flush=True)
        if args.json:
            print(trial.to_json(), flush=True)
    print(*mode_table(tally, modes), sep="\n", file=says)
    if args.markdown:
        print(*markdown(tally, modes), sep="\n")
    print(tally.line, file=says)
    return tally.status(_FAULTS_MAX)


def _words(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.planted", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="planted bugs; all of them for none")
    parser.add_argument("--modes", default="", metavar="A,B", help=f"modes of searching, of {', '.join(MODES)}")
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="at most so many runs a mode (100; quick: 20)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the first seed (1)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="so many processes at a time (2)")
    parser.add_argument("--quick", action="store_true", help="few runs, little shrinking")
    parser.add_argument("--json", action="store_true", help="a JSON object for each bug; the rest on standard error")
    parser.add_argument("--markdown", action="store_true", help="the tables of docs/planted.md; the rest likewise")
    return parser.parse_args(argv)


def _trials(names: Sequence[str], bounds: Bounds, jobs: int) -> Iterator[Trial]:
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        yield from pool.map(lambda name: _tried(name, bounds), names)


def _tried(name: str, bounds: Bounds) -> Trial:
    command = [sys.executable, "-m", "tests.planted.trial", name, *bounds.words]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Trial(name=name, error=f"no end within {_TIMEOUT_S} s")
    if done.returncode != 0:
        return Trial(name=name, error=done.stderr.strip().splitlines()[-1] if done.stderr else f"{done.returncode}")
    return Trial.from_json(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
