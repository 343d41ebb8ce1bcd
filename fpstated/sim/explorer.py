"""``fpstated sim explorer``: a graph of states as a page to walk on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fpstated.sim.shared import UsageError, complaints


def explorer(
    file: Annotated[Path, typer.Argument(metavar="GRAPH", help="What `sim explore --graph` wrote.")],
    output: Annotated[Path, typer.Option("-o", metavar="FILE", help="The page.")],
) -> None:
    """Make a page on which every state of an exploration can be walked to, step by step."""
    with complaints("explorer"):
        from fault_lab.pictures.explorer_page import explorer_page
        from fault_lab.pictures.recording import PictureError

        try:
            made = explorer_page(file.read_text(encoding="utf-8"))
        except (PictureError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: {error}") from error
        output.write_text(made, encoding="utf-8")
