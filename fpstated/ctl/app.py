"""The commands of ``fpstated ctl``, put together."""

from __future__ import annotations

from pathlib import Path

import typer

from fpstated.config.command import settings_callback
from fpstated.config.show import print_config
from fpstated.config.tables import CTL
from fpstated.ctl.connection import USAGE, Group, complain, connected, ctl_settings
from fpstated.ctl.exits import audit, exits
from fpstated.ctl.hosts import drain, host, limits
from fpstated.ctl.images import export_vm, import_vm
from fpstated.ctl.migrate import migrate_vm
from fpstated.ctl.migrations import migrations
from fpstated.ctl.resolve import resolve
from fpstated.ctl.vcpus import sessions, vcpus
from fpstated.ctl.vms import vms
from fpstated.ctl.watch import watch

_HELP = """Look at a running host and act on it.

Names may be short: a is vms/a, a/0 its vCPU 0, a/0/7 that one's exit 7. --json prints what the host answered as
protobuf's JSON. Status 0: done; 1: refused; 2: asked for wrongly; 3: no host answered. docs/ctl.md has the rest.

Examples: fpstated ctl vms list; fpstated ctl exits list --json; fpstated ctl --address 127.0.0.1:7443 host info
"""

ctl = typer.Typer(cls=Group, help=_HELP, no_args_is_help=True, rich_markup_mode=None, add_completion=False)


def _connect(ctx: typer.Context, flags: dict[str, object], config: Path | None, show: bool) -> None:
    try:
        settings = ctl_settings(flags, config)
        if show:
            print(print_config(settings), end="")
            raise typer.Exit
        ctx.obj = connected(settings)
    except ValueError as error:
        complain(str(error))
        raise typer.Exit(USAGE) from None


ctl.callback()(settings_callback(CTL, _connect, _HELP))
ctl.add_typer(host, name="host")
ctl.add_typer(vms, name="vms")
ctl.add_typer(vcpus, name="vcpus")
ctl.add_typer(sessions, name="sessions")
ctl.add_typer(exits, name="exits")
ctl.command()(resolve)
ctl.command()(watch)
ctl.add_typer(limits, name="limits")
ctl.command()(audit)
ctl.command()(drain)
ctl.command("export")(export_vm)
ctl.command("import")(import_vm)
ctl.command("migrate")(migrate_vm)
ctl.add_typer(migrations, name="migrations")
