"""``fpstated live``, put together: each command is a module of its own, and imports what it needs when it runs."""

from __future__ import annotations

import typer

from fpstated.broken_option import BrokenName
from fpstated.live.halt import halt
from fpstated.live.run import run

live = typer.Typer(
    help="The same plans on real processes: hosts, guests and controllers that are started, broken and healed.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@live.callback()
def _broken(ctx: typer.Context, broken: BrokenName = "") -> None:
    ctx.obj = broken


live.command()(run)
live.command()(halt)
