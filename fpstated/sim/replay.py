"""``fpstated sim replay``: a recorded run again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fpstated.files import read_input
from fpstated.sim.shared import VIOLATION, UsageError, complaints


def replay(file: Annotated[Path, typer.Argument(metavar="FILE", help="What `sim run --history` wrote.")]) -> None:
    """Run a recorded run again, and compare. Status 1 where it goes another way; the first record that differs."""
    with complaints("replay"):
        from fault_lab.sim.record import RecordError, read_record
        from fault_lab.sim.record import replay as run_again

        try:
            recorded = read_record(read_input(file))
            if recorded.live:
                raise UsageError(f"{file}: expected a simulated run, got a live one: see `fpstated sim diff`")
            again = run_again(recorded)
        except RecordError as error:
            raise UsageError(f"{file}: {error}") from error
        if again.divergence is not None:
            print(f"record {again.divergence} differs\n  was {again.was}\n  now {again.now}", file=sys.stderr)
            raise typer.Exit(VIOLATION)
        print(f"the same: {len(again.result.lines)} records, sha256 {again.result.digest}")
