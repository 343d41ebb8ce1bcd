"""``fpstated sim explorer``: a graph of states as a page to walk on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fpstated.files import read_input, write_output
from fpstated.sim.shared import UsageError, complaints


def explorer(
    file: Annotated[Path, typer.Argument(metavar="GRAPH", help="What `sim explore --graph` wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The page.")],
) -> None:
    """Make a page on which every state of an exploration can be walked to, step by step."""
    with complaints("explorer"):
        from fault_lab.pictures.explorer_page import explorer_page
        from fault_lab.pictures.recording import PictureError

        try:
            made = explorer_page(read_input(file))
        except PictureError as error:
            raise UsageError(f"{file}: {error}") from error
        write_output(output, made)
