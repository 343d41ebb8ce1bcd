"""``fpstated sim shrink``: as few faults as it takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fpstated.faults_command import PlanFile
from fpstated.sim.shared import UsageError, complaints, loaded_plan


def shrink(
    plan: PlanFile,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The seed; the plan's own where none is given.")] = None,
    runs: Annotated[int, typer.Option(metavar="N", help="At most so many runs.", min=1)] = 1000,
    output: Annotated[Path | None, typer.Option("-o", metavar="FILE", help="Where the small plan goes.")] = None,
) -> None:
    """Find as few faults as it takes for the same check to fail; the small plan is written as JSON."""
    with complaints("shrink"):
        from fault_lab.plan.canonical import readable_json
        from fault_lab.sim.run import simulate
        from fault_lab.sim.shrink import Shrinker

        loaded = loaded_plan(plan)
        drawn = loaded.seed if seed is None else seed
        found = simulate(loaded, drawn).violation
        if found is None:
            raise UsageError(f"seed {drawn} violates nothing")
        shrunk = Shrinker(loaded, drawn, found.check, runs_max=runs).shrink()
        assert shrunk is not None, "a run is the same each time"
        text = readable_json(shrunk.plan)
        if output is not None:
            output.write_text(text, encoding="utf-8")
        else:
            print(text, end="")
        left = len(shrunk.plan.schedule.hits) if shrunk.exact else len(shrunk.plan.faults)
        kind = "hits" if shrunk.exact else "faults"
        print(f"{found.check}: {left} {kind} left after {shrunk.runs} runs", file=sys.stderr)
