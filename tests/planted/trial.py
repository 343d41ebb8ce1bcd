"""One bug, or a healthy plan, before the modes, in a process of its own.

python -m tests.planted.trial double-decision --modes random,pct --runs 50 --shrink 100 --seed 1

The bug is patched in before anything of ours is imported. The last line printed is the trial as JSON.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.museum.loader import install
from tests.museum.mutant import PatchError
from tests.museum.watchdog import ends_within
from tests.planted.bug import PLANS, Bug
from tests.planted.bugs import BUGS
from tests.planted.modes import EXHAUSTIVE, WORLDS, every_state_of, runs_of
from tests.planted.outcome import Bounds, Find, Trial

if TYPE_CHECKING:
    from fpstate.fault.v1 import plan_pb2

    from fault_lab.search.run import Search
    from fault_lab.search.tried import Tried

#: Before the name of a plan: the healthy code in its runs.
CONTROL = "control:"
#: A run takes some tens of milliseconds; what takes longer hangs.
_RUN_S = 60
#: Every state of a small world takes a second, more on a busy machine; some bugs add states without an end.
_WORLD_S = 15


def main(argv: list[str] | None = None) -> int:
    """Try one; the trial is the last line."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted.trial", description=__doc__)
    parser.add_argument("name", help=f"a planted bug, or {CONTROL}PLAN for the healthy code")
    parser.add_argument("--modes", default="random")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--shrink", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--once", action="store_true")
    args = parser.parse_args(argv)
    modes = tuple(args.modes.split(","))
    bounds = Bounds(modes=modes, runs=args.runs, shrink=args.shrink, seed=args.seed, once=args.once)
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
    if plan in WORLDS:
        return (_look_everywhere([plan], None),)
    return tuple(_look(plan, mode, bounds, None)[0] for mode in bounds.modes if mode != EXHAUSTIVE)


def _planted(bug: Bug, bounds: Bounds) -> tuple[Find, ...]:
    install(bug)
    looked = [
        (_look_everywhere(WORLDS, bug.checks), None)
        if mode == EXHAUSTIVE
        else _look(bug.plan, mode, bounds, bug.checks)
        for mode in bounds.modes
    ]
    shrinks = [tried for _, tried in looked if tried is not None]
    if bounds.once:
        shrinks = sorted(shrinks, key=lambda tried: len(tried.result.fired))[:1]
    return tuple(
        replace(find, faults=_shrunk(tried, bounds.shrink)) if tried is not None and tried in shrinks else find
        for find, tried in looked
    )


def _look(name: str, mode: str, bounds: Bounds, checks: Collection[str] | None) -> tuple[Find, Tried | None]:
    """Search one plan in one mode until one of the checks does not hold, None for any; with the run that shows it."""
    found = runs_of(mode, plan_of(name), runs=bounds.runs, seed=bounds.seed)
    while (tried := _next(found)) is not None:
        violation = tried.result.violation
        if violation is not None and (checks is None or violation.check in checks):
            find = Find(
                mode=mode,
                runs=found.counts.runs,
                check=violation.check,
                text=violation.text,
                plan=name,
                varied=tried.varied,
            )
            return find, tried
    return Find(mode=mode, runs=found.counts.runs, plan=name), None


def _look_everywhere(worlds: Sequence[str], checks: Collection[str] | None) -> Find:
    """Go through every state of some small worlds, one after the other: each counts as a run."""
    for runs, world in enumerate(worlds, 1):
        try:
            with ends_within(_RUN_S if checks is None else _WORLD_S):
                explored = every_state_of(world)
        except Exception:
            if checks is None:
                raise
            continue  # what is planted may be more than an exploration can take apart, or never end
        for found in explored.violations:
            if checks is None or found.check in checks:
                made = explored.counterexample(found) if checks is not None else None
                hits = len(made.plan.schedule.hits) if made is not None else None
                return Find(mode=EXHAUSTIVE, runs=runs, check=found.check, text=found.text, plan=world, faults=hits)
    return Find(mode=EXHAUSTIVE, runs=len(worlds), plan=worlds[-1])


def _next(found: Search) -> Tried | None:
    """The next run; some bugs would never let it end."""
    with ends_within(_RUN_S):
        return next(found, None)


def plan_of(name: str) -> plan_pb2.Plan:
    """A plan of ours, checked."""
    from fault_lab.plan.load import load_plan

    return load_plan(PLANS[name].read_text(encoding="utf-8"), PLANS[name].name)


def _shrunk(tried: Tried, runs: int) -> int:
    """How many faults still fire in the smallest run that shrinking finds."""
    from fault_lab.sim.shrink import Shrinker

    assert tried.result.violation is not None, "there is something to be kept"
    shrunk = Shrinker(tried.plan, tried.seed, tried.result.violation.check, runs_max=runs).shrink()
    assert shrunk is not None, "a run is the same each time"
    return len(shrunk.result.fired)


if __name__ == "__main__":
    sys.exit(main())
