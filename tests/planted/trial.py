"""One bug, or a healthy plan, before the modes, in a process of its own.

python -m tests.planted.trial double-decision --modes random,pct --runs 50 --shrink 100 --seed 1

The bug is patched in before anything of ours is imported. The last line printed is the trial as JSON.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from tests.museum.loader import install
from tests.museum.mutant import PatchError
from tests.planted.bug import PLANS, Bug
from tests.planted.bugs import BUGS
from tests.planted.modes import runs_of
from tests.planted.outcome import Bounds, Find, Trial

if TYPE_CHECKING:
    from fpstate.fault.v1 import plan_pb2

#: Before the name of a plan: the healthy code in its runs.
CONTROL = "control:"


def main(argv: list[str] | None = None) -> int:
    """Try one; the trial is the last line."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted.trial", description=__doc__)
    parser.add_argument("name", help=f"a planted bug, or {CONTROL}PLAN for the healthy code")
    parser.add_argument("--modes", default="random")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--shrink", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    bounds = Bounds(modes=tuple(args.modes.split(",")), runs=args.runs, shrink=args.shrink, seed=args.seed)
    started = time.monotonic()
    try:
        finds = _control(args.name, bounds) if args.name.startswith(CONTROL) else _planted(BUGS[args.name], bounds)
        trial = Trial(name=args.name, finds=finds, seconds=time.monotonic() - started)
    except PatchError as error:
        trial = Trial(name=args.name, error=str(error))
    print(trial.to_json())
    return 0


def _control(name: str, bounds: Bounds) -> tuple[Find, ...]:
    """Whatever the healthy code is found guilty of is a find."""
    plan = name.removeprefix(CONTROL)
    return tuple(_look(plan, mode, bounds, frozenset()) for mode in bounds.modes)


def _planted(bug: Bug, bounds: Bounds) -> tuple[Find, ...]:
    install(bug)
    return tuple(_look(bug.plan, mode, bounds, bug.checks) for mode in bounds.modes)


def _look(name: str, mode: str, bounds: Bounds, checks: Collection[str]) -> Find:
    """Search one plan in one mode until a check does not hold; with ``checks`` it has to be one of those."""
    found = runs_of(mode, plan_of(name), runs=bounds.runs, seed=bounds.seed)
    for runs, tried in enumerate(found, 1):
        violation = tried.result.violation
        if violation is not None and (not checks or violation.check in checks):
            faults = _shrunk(tried.plan, tried.seed, violation.check, bounds.shrink) if checks else None
            return Find(
                mode=mode,
                runs=runs,
                check=violation.check,
                text=violation.text,
                plan=name,
                varied=tried.varied,
                faults=faults,
            )
    return Find(mode=mode, runs=found.counts.runs, plan=name)


def plan_of(name: str) -> plan_pb2.Plan:
    """A plan of ours, checked."""
    from fault_lab.plan.load import load_plan

    path = PLANS / f"{name}.yaml"
    return load_plan(path.read_text(encoding="utf-8"), path.name)


def _shrunk(plan: plan_pb2.Plan, seed: int, check: str, runs: int) -> int | None:
    """How many faults still fire in the smallest run that shrinking finds."""
    from fault_lab.sim.shrink import Shrinker

    shrunk = Shrinker(plan, seed, check, runs_max=runs).shrink() if runs else None
    return len(shrunk.result.fired) if shrunk is not None else None


if __name__ == "__main__":
    sys.exit(main())
