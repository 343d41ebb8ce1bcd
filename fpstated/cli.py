"""The command `fpstated`."""

from __future__ import annotations

from typing import Annotated

import typer

from fpstated import __version__

app = typer.Typer(name="fpstated", no_args_is_help=True, add_completion=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fpstated {__version__}")
        raise typer.Exit


@app.callback()
def fpstated(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Guest FPU state that grows on demand, as a service that can be broken on purpose."""


def main() -> None:
    """Run the command line; the entry point of the distribution."""
    app()
