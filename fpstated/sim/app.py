"""``fpstated sim``, put together: each command is a module of its own, and imports what it needs when it runs."""

from __future__ import annotations

import typer

from fpstated.broken_option import BrokenName
from fpstated.sim.branch import branch
from fpstated.sim.check import check
from fpstated.sim.coverage import coverage
from fpstated.sim.diff import diff
from fpstated.sim.explore import explore
from fpstated.sim.explorer import explorer
from fpstated.sim.perfetto import perfetto
from fpstated.sim.replay import replay
from fpstated.sim.run import run
from fpstated.sim.search import search
from fpstated.sim.shrink import shrink
from fpstated.sim.timeline import timeline

sim = typer.Typer(
    help="The simulated world: a plan on a virtual clock, checked after every step.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@sim.callback()
def _broken(ctx: typer.Context, broken: BrokenName = "") -> None:
    if broken:
        from fault_lab.broken.versions import planted

        ctx.with_resource(planted(broken))


sim.command()(run)
sim.command()(replay)
sim.command()(branch)
sim.command()(search)
sim.command()(shrink)
sim.command()(check)
sim.command()(explore)
sim.command()(timeline)
sim.command()(coverage)
sim.command()(explorer)
sim.command()(perfetto)
sim.command()(diff)
