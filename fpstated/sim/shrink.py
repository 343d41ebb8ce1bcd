"""``fpstated sim shrink``: as little as it takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fpstated.faults_command import PlanFile
from fpstated.files import expect_writable, write_output
from fpstated.sim.shared import Seed, UsageError, complaints, loaded_plan


def shrink(
    plan: PlanFile,
    seed: Seed = None,
    runs: Annotated[int, typer.Option(metavar="N", help="At most so many runs.", min=1)] = 1000,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where the small plan goes.")
    ] = None,
    test: Annotated[Path | None, typer.Option("--pytest", metavar="FILE", help="A test that fails so.")] = None,
) -> None:
    """Find as little as it takes for the same check to fail; the small plan is written as JSON."""
    with complaints("shrink"):
        from fault_lab.plan.canonical import readable_json
        from fault_lab.sim.as_test import pytest_text
        from fault_lab.sim.run import simulate
        from fault_lab.sim.shrink import Shrinker

        expect_writable(output, test)
        loaded = loaded_plan(plan)
        drawn = loaded.seed if seed is None else seed
        found = simulate(loaded, drawn).violation
        if found is None:
            raise UsageError(f"seed {drawn} violates nothing")
        shrunk = Shrinker(loaded, drawn, found.check, runs_max=runs).shrink()
        assert shrunk is not None, "a run is the same each time"
        left = shrunk.result.violation
        assert left is not None, "what is left fails"
        text = readable_json(shrunk.plan)
        if output is not None:
            write_output(output, text)
        if test is not None:
            write_output(test, pytest_text(shrunk.plan, left, test.name, shrunk.result.broken))
        if output is None and test is None:
            print(text, end="")
        count = len(shrunk.plan.schedule.hits) if shrunk.exact else len(shrunk.plan.faults)
        kind = ("hit" if shrunk.exact else "fault") + ("" if count == 1 else "s")
        print(f"{found.check}: {count} {kind} left after {shrunk.runs} runs", file=sys.stderr)
