"""``fpstated sim explore``: every order and every placement of faults in a small world, within bounds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fpstated.faults_command import PlanFile
from fpstated.files import expect_writable, write_output
from fpstated.sim.shared import OK, UNKNOWN, VIOLATION, UsageError, complaints, loaded_plan, say, sim_command

if TYPE_CHECKING:
    from fpstate.fault.v1 import plan_pb2

    from fault_lab.explore.bounds import Bounds
    from fault_lab.explore.counterexample import Counterexample
    from fault_lab.explore.run import Explored


def explore(
    plan: PlanFile,
    depth: Annotated[int, typer.Option(metavar="N", help="Steps of a path.", min=1)] = 200,
    states: Annotated[int, typer.Option(metavar="N", help="Distinct states.", min=1)] = 100_000,
    faults: Annotated[int, typer.Option(metavar="N", help="Hits that fire in one path.", min=0)] = 2,
    drops: Annotated[int, typer.Option(metavar="N", help="Of those, what is lost.", min=0)] = 1,
    duplicates: Annotated[int, typer.Option(metavar="N", help="Of those, what comes twice.", min=0)] = 1,
    crashes: Annotated[int, typer.Option(metavar="N", help="Of those, processes that end or stand.", min=0)] = 1,
    preemptions: Annotated[
        int | None, typer.Option(metavar="N", help="What happens out of its turn; any number where not given.", min=0)
    ] = None,
    no_symmetry: Annotated[bool, typer.Option("--no-symmetry", help="Tell guests that are alike apart.")] = False,
    no_reduction: Annotated[
        bool, typer.Option("--no-reduction", help="Also orders of what concerns nobody else.")
    ] = False,
    liveness: Annotated[
        bool, typer.Option("--liveness", help="Also what must come about in the end; needs --no-symmetry.")
    ] = False,
    graph: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the state graph, as JSON.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where the plan of the first violation goes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Explore a plan. Status 0: clean, and the space is exhausted; 1: a check fails; 2: clean, but cut by a bound."""
    with complaints("explore"):
        from fault_lab.explore.bounds import Bounds
        from fault_lab.explore.graph import graph_json

        bounds = Bounds(
            depth=depth,
            states=states,
            faults=faults,
            drops=drops,
            duplicates=duplicates,
            crashes=crashes,
            preemptions=preemptions,
            symmetry=not no_symmetry,
            reduction=not no_reduction,
        )
        expect_writable(graph, output)
        loaded = loaded_plan(plan)
        if liveness and not no_symmetry:
            raise UsageError("--liveness: expected --no-symmetry with it: a guest must not stand in for another one")
        explored = explored_plan(loaded, bounds, liveness=liveness)
        if graph is not None:
            write_output(graph, graph_json(explored))
        raise typer.Exit(report_explored(plan, explored, output, as_json=as_json))


def explored_plan(plan: plan_pb2.Plan, bounds: Bounds, *, liveness: bool = False) -> Explored:
    """Explore a plan. Raises ``UsageError`` for what is no small world."""
    from fault_lab.explore.cast import ExploreError
    from fault_lab.explore.run import explore as begin
    from fault_lab.sim.rules import EVENTUALLY

    try:
        return begin(plan, bounds, liveness=tuple(EVENTUALLY) if liveness else ())
    except ExploreError as error:
        raise UsageError(str(error)) from error


def report_explored(plan: str, explored: Explored, output: Path | None, *, as_json: bool) -> int:
    """Say what was found, write the plan of the first violation to ``output``, and return the status."""
    _report(plan, explored, output, as_json=as_json)
    return VIOLATION if explored.violations else OK if explored.exhausted else UNKNOWN


def _report(plan: str, explored: Explored, output: Path | None, *, as_json: bool) -> None:
    left_out = explored.world.menu.left_out
    if left_out:
        say("explore", "sim", f"not explored, since a small world has no such point: {', '.join(left_out)}")
    told: list[dict[str, Any]] = []
    for nr, found in enumerate(explored.violations):
        steps = explored.steps_to(found)
        counterexample = explored.counterexample(found)
        if not as_json:
            print(f"violation: {found.check} after {len(steps)} steps: {found.text}", file=sys.stderr)
            for step in steps:
                print(f"  {step}", file=sys.stderr)
            print(_replays(counterexample, output if not nr else None, plan), file=sys.stderr)
        if counterexample is not None and output is not None and not nr:
            from fault_lab.plan.canonical import readable_json

            write_output(output, readable_json(counterexample.plan))
        told.append({"check": found.check, "text": found.text, "steps": steps, "plan": _plan(counterexample)})
    if as_json:
        counts = {"states": explored.states, "transitions": explored.transitions, "depth": explored.depth}
        ends = {"exhausted": explored.exhausted, "cut": sorted(explored.space.cut)}
        print(json.dumps({"plan": explored.plan.name, **counts, **ends, "violations": told}))
    print(explored.verdict, file=sys.stderr if as_json else sys.stdout)


def _replays(counterexample: Counterexample | None, output: Path | None, plan: str) -> str:
    if counterexample is None:
        return f"no plan was found that shows it in the simulator ({plan})"
    hits = len(counterexample.plan.schedule.hits)
    where = f": {sim_command()} run {output}" if output is not None else "; -o FILE writes it"
    return f"a plan of {hits} hits violates the same check in the simulator{where}"


def _plan(counterexample: Counterexample | None) -> Any:  # noqa: ANN401 -- JSON
    if counterexample is None:
        return None
    from fault_lab.plan.canonical import canonical_json

    return json.loads(canonical_json(counterexample.plan))
