"""``fpstated sim perfetto``: a recorded run for another viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fpstated.files import write_output
from fpstated.sim.shared import complaints, recording


def perfetto(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `sim run --history` wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The trace, as JSON.")],
) -> None:
    """Write a run as a trace for ui.perfetto.dev: nodes, vCPUs, calls, messages, faults, sizes of containers."""
    with complaints("perfetto"):
        from fault_lab.pictures.perfetto import perfetto_trace

        with recording(file) as run:
            write_output(output, perfetto_trace(run))
