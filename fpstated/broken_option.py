"""``--broken NAME`` of ``fpstated sim`` and ``fpstated live``: a version that is wrong in one step runs."""

from __future__ import annotations

from typing import Annotated

import typer

from fpstated.sim.shared import UsageError, complaints


def _known(ctx: typer.Context, name: str) -> str:
    """Return the name of a version; show them all for ``list``, and end."""
    if not name:
        return name
    with complaints("--broken", ctx.info_name or ""):
        from fault_lab.broken.versions import UnknownVersionError, known, version_lines

        if name == "list":
            print(*version_lines(), sep="\n")
            raise typer.Exit
        try:
            known(name)
        except UnknownVersionError as error:
            raise UsageError(str(error)) from error
    return name


BrokenName = Annotated[
    str,
    typer.Option(
        "--broken",
        metavar="NAME",
        callback=_known,
        is_eager=True,
        help="Run a version that is wrong in one step; `list` shows them.",
    ),
]
