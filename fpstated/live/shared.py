"""What the commands of ``fpstated live`` share: the statuses and complaints of ``fpstated sim``, in their own name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import typer

from fpstated.sim.shared import UNKNOWN, complaints, say

GROUP = "live"


@contextmanager
def live_complaints(command: str) -> Iterator[None]:
    """What is wrong with a plan or the words is status 2, with the runner 3."""
    if any(find_spec(name) is None for name in ("hpack", "yaml", "numpy", "apsw")):
        say(command, GROUP, "this install is a guest's; this needs: pip install 'fpstated[live]'")
        raise typer.Exit(UNKNOWN)
    with complaints(command, GROUP, "the runner"):
        yield
