"""``fpstated sim search``: a plan again and again, varied each time."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fpstated.faults_command import PlanFile
from fpstated.files import write_output
from fpstated.progress import stages
from fpstated.sim.shared import OK, UNKNOWN, VIOLATION, UsageError, checked_seed, complaints, loaded_plan, sim_command

if TYPE_CHECKING:
    from fpstate.fault.v1 import plan_pb2

    from fault_lab.search.run import Search
    from fault_lab.search.tried import Tried

_NUMBER = re.compile(r"\d+")


def search(
    plan: PlanFile,
    mode: Annotated[
        str,
        typer.Option(
            metavar="MODE",
            help="random, swarm, fail-nth, pairs, pct or exhaustive; the plan's own by default, else random.",
            show_default=False,
        ),
    ] = "",
    runs: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="At most so many runs; the plan's own by default, else 100, and 100,000 where a mode ends by itself.",
            min=0,
            show_default=False,
        ),
    ] = 0,
    seed: Annotated[
        int | None, typer.Option(metavar="N", callback=checked_seed, help="The first seed; the plan's own by default.")
    ] = None,
    depth: Annotated[
        int,
        typer.Option(
            metavar="D",
            help="For pct: the depth of bugs looked for; the plan's own by default, else 3.",
            min=0,
            max=100,
            show_default=False,
        ),
    ] = 0,
    stop_at_first: Annotated[
        bool, typer.Option("--stop-at-first/--all", help="Whether the first violation ends the search.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: the certificate of each run.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where plans that fail are written.")
    ] = None,
) -> None:
    """Search for runs that violate something. Each violation once, with what was varied and what repeats it."""
    with complaints("search"):
        from fault_lab.search.run import DEPTH, SearchModeError, mode_of
        from fault_lab.search.run import search as begin

        loaded = loaded_plan(plan)
        own = loaded.search
        try:
            chosen = mode_of(mode) if mode else own.mode or mode_of("random")
            if chosen == mode_of("exhaustive"):  # goes over states, and not over runs
                raise typer.Exit(_explored(plan, loaded, runs or own.runs, output, as_json=as_json))
            found = begin(
                loaded,
                chosen,
                runs=runs or own.runs,
                seed=loaded.seed if seed is None else seed,
                depth=depth or own.depth or DEPTH,
            )
        except SearchModeError as error:
            raise UsageError(str(error)) from error
        report = _Report(plan, found, depth or own.depth or DEPTH, output)
        with stages() as heard:
            for tried in found:
                heard(tried.varied, found.counts.runs, found.runs_max)
                if as_json:
                    print(json.dumps({"varied": tried.varied, **tried.result.certificate}))
                report.add(tried)
                if stop_at_first and tried.result.violation is not None:
                    break
        unseen = [name for name in loaded.checks.sometimes if name not in found.seen]
        for name in unseen:
            print(f"never seen: {name}", file=sys.stderr)
        print(report.end, file=sys.stderr if as_json else sys.stdout)
        counts = found.counts
        raise typer.Exit(VIOLATION if counts.violations else UNKNOWN if unseen or counts.unknown else OK)


def _explored(name: str, plan: plan_pb2.Plan, states: int, output: Path | None, *, as_json: bool) -> int:
    """Every order within the plan's budget: ``fpstated sim explore`` has all of the bounds."""
    from fault_lab.explore.bounds import Bounds
    from fpstated.sim.explore import explored_plan, report_explored

    bounds = Bounds()
    if states:
        bounds = replace(bounds, states=states)
    if plan.budget.HasField("faults"):
        bounds = replace(bounds, faults=plan.budget.faults)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        output /= f"{plan.name}-1.json"
    return report_explored(name, explored_plan(plan, bounds), output, as_json=as_json)


class _Report:
    """What is told of violations: each once, the first time that it is met."""

    def __init__(self, plan: str, found: Search, depth: int, output: Path | None) -> None:
        self._plan = plan
        self._found = found
        self._depth = depth
        self._output = output
        self._known: set[tuple[str, str]] = set()
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)

    def add(self, tried: Tried) -> None:
        """Tell of a violation that no run before had; two that differ in numbers alone are the same."""
        found = tried.result.violation
        if found is None or (key := (found.check, _NUMBER.sub("N", found.text))) in self._known:
            return
        self._known.add(key)
        print(f"violation: {found.check} at step {found.step}, {found.t_ns / 1e9:.6f} s: {found.text}", file=sys.stderr)
        print(f"  varied: {tried.varied}", file=sys.stderr)
        print(f"  repeat: {self._repeat(tried)}", file=sys.stderr)

    def _repeat(self, tried: Tried) -> str:
        """The one command that shows it again."""
        from fault_lab.search.run import mode_name

        if self._output is not None:
            return (
                f"{sim_command()} run {self._written(self._output, tried.plan, len(self._known))} --seed {tried.seed}"
            )
        name = mode_name(self._found.mode)
        match name:
            case "random":
                return f"{sim_command()} run {self._plan} --seed {tried.seed}"
            case "swarm":
                return f"{sim_command()} search {self._plan} --mode swarm --seed {tried.seed} --runs 1"
            case "pct":
                words = f"--mode pct --seed {tried.seed} --runs 1 --depth {self._depth}"
                return f"{sim_command()} search {self._plan} {words}"
            case _:  # the last of so many runs
                return f"{sim_command()} search {self._plan} --mode {name} --seed {tried.seed} --runs {self._runs}"

    @property
    def _runs(self) -> int:
        return self._found.counts.runs

    @staticmethod
    def _written(folder: Path, plan: plan_pb2.Plan, nr: int) -> Path:
        from fault_lab.plan.canonical import readable_json

        path = folder / f"{plan.name}-{nr}.json"
        write_output(path, readable_json(plan))
        return path

    @property
    def end(self) -> str:
        """What was looked at, and the figures in the last line."""
        counts = self._found.counts
        if counts.violations:
            kinds = "1 kind" if len(self._known) == 1 else f"{len(self._known)} kinds"
            said = f"{kinds} of violation within: {self._found.bounds}"
        else:
            said = f"no violation within bounds: {self._found.bounds}"
        ended = "nothing is left to try" if self._found.exhausted else "the bounds ended it"
        figures = f"runs: {counts.runs}, steps: {counts.steps}, violations: {counts.violations}"
        return f"{said}\n{figures}, faults fired: {counts.fired}; {ended}"
