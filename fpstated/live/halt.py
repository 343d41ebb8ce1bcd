"""``fpstated live halt``: nothing is to go wrong any more, whoever armed it."""

from __future__ import annotations

from typing import Annotated

import typer

from fpstated.live.shared import live_complaints
from fpstated.sim.shared import UsageError


def halt(
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS", help="A host, unix:PATH or HOST:PORT; the user's where none is given. Several."
        ),
    ] = None,
) -> None:
    """Disarm every fault on these hosts, without asking whose it is. Status 2 where a host cannot be reached."""
    with live_complaints("halt"):
        from fault_lab.live.arming import disarmed
        from fpstated.address import default_address

        failed = []
        for address in host or [default_address()]:
            try:
                print(f"{address}: {disarmed(address)} faults disarmed")
            except OSError as error:
                failed.append(str(error))
        if failed:
            raise UsageError("\n".join(failed))
