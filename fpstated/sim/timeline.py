"""``fpstated sim timeline``: a recorded run as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fpstated.files import write_output
from fpstated.sim.shared import UsageError, complaints, recording


def timeline(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `sim run --history` wrote.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="A page (.html), or a still picture (.svg).")
    ],
    first: Annotated[
        int | None, typer.Option("--from", metavar="N", help="The first record; around the violation where not given.")
    ] = None,
    last: Annotated[int | None, typer.Option("--to", metavar="N", help="The last record.")] = None,
) -> None:
    """Draw a run: lanes, messages, faults, XFD and sizes of containers. A page shows 10,000 records, a picture 300."""
    with complaints("timeline"):
        from fault_lab.pictures.lamport import lamport_svg
        from fault_lab.pictures.timeline_page import timeline_page

        draw = {".html": timeline_page, ".svg": lamport_svg}.get(output.suffix)
        if draw is None:
            raise UsageError(f"-o: expected a name that ends in .html or .svg, got {str(output)!r}")
        with recording(file) as run:
            write_output(output, draw(run, first, last))
