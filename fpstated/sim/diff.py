"""``fpstated sim diff``: a live run beside the simulated one of the same plan and seed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fpstated.files import read_input
from fpstated.sim.shared import VIOLATION, UsageError, complaints


def diff(
    live: Annotated[Path, typer.Argument(metavar="LIVE", help="What `live run --history` wrote.")],
    simulated: Annotated[
        Path | None,
        typer.Argument(metavar="SIM", help="What `sim run --history` wrote; without it the plan is simulated now."),
    ] = None,
) -> None:
    """Compare what each vCPU did and which faults fired, not times. Status 1: where each first differs."""
    with complaints("diff"):
        from fault_lab.sim.diff import first_differences, sequences
        from fault_lab.sim.record import RecordError, read_record
        from fault_lab.sim.run import simulate

        try:
            here = read_record(read_input(live))
        except RecordError as error:
            raise UsageError(f"{live}: {error}") from error
        try:
            there = None if simulated is None else read_record(read_input(simulated))
        except RecordError as error:
            raise UsageError(f"{simulated}: {error}") from error
        if not here.live:
            raise UsageError(f"{live}: expected the history of a live run")
        if there is not None and (there.plan, there.seed) != (here.plan, here.seed):
            raise UsageError(f"{simulated}: expected the plan and the seed of {live}")
        lines = there.lines if there is not None else simulate(here.plan, here.seed).lines
        found = first_differences(here.lines, lines)
        for difference in found:
            print(difference.text(), file=sys.stderr)
        compared = sequences(here.lines)
        same = len(compared) - sum(1 for each in found if each.entity in compared)
        print(f"diff: {len(compared)} compared, {same} the same, {len(found)} differ")
        if found:
            raise typer.Exit(VIOLATION)
