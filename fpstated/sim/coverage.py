"""``fpstated sim coverage``: what many runs of a plan have reached."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fpstated.faults_command import PlanFile
from fpstated.files import expect_writable, write_output
from fpstated.progress import stages
from fpstated.sim.run import chosen_seeds
from fpstated.sim.shared import complaints, loaded_plan


def coverage(
    plan: PlanFile,
    seeds: Annotated[str, typer.Option(metavar="A..B", help="These seeds, both ends included.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the matrix as a page.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Count at which fault point, in which state of a vCPU, and before which decision faults have fired."""
    with complaints("coverage"):
        from fault_lab.pictures.coverage import Coverage
        from fault_lab.pictures.coverage_page import coverage_page
        from fault_lab.pictures.coverage_text import coverage_lines, coverage_values
        from fault_lab.pictures.recording import records_of
        from fault_lab.plan.canonical import canonical_json
        from fault_lab.sim.run import simulate

        expect_writable(output)
        loaded = loaded_plan(plan)
        found = Coverage(json.loads(canonical_json(loaded)))
        chosen = chosen_seeds(loaded.seed, seeds, given=False)
        with stages() as heard:
            for done, seed in enumerate(chosen):
                heard(f"seed {seed}", done, len(chosen))
                result = simulate(loaded, seed)
                if result.violation is not None:
                    print(f"seed {seed}: violation of {result.violation.check}, counted up to there", file=sys.stderr)
                found.add(records_of(result.lines))
        if output is not None:
            write_output(output, coverage_page(found, seeds))
        print(json.dumps(coverage_values(found)) if as_json else "\n".join(coverage_lines(found)))
