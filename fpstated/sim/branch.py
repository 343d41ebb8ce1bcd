"""``fpstated sim branch``: a recorded run, another way from some record on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fpstated.files import expect_writable, read_input, write_output
from fpstated.sim.shared import OK, UNKNOWN, VIOLATION, UsageError, checked_seed, complaints

if TYPE_CHECKING:
    from fault_lab.sim.branch import Branched
    from fault_lab.sim.record import Recorded


def branch(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `sim run --history` wrote.")],
    at: Annotated[int, typer.Option(metavar="N", help="Up to this record it is the same run.", min=0)],
    seed: Annotated[
        int | None, typer.Option(metavar="N", callback=checked_seed, help="What is drawn later is drawn from this.")
    ] = None,
    fire: Annotated[
        list[str] | None, typer.Option(metavar="POINT:ENTITY:HIT[:ACTION]", help="A hit that fires; repeatable.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="POINT:ENTITY:HIT", help="A hit that does not fire; repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where the branched run goes.")
    ] = None,
) -> None:
    """Go the same way up to a record, and from there another; what comes out is a recorded run as well."""
    with complaints("branch"):
        from fault_lab.sim.branch import BranchError, read_hit
        from fault_lab.sim.branch import branch as leave
        from fault_lab.sim.record import RecordError, read_record, record_lines

        if seed is None and not fire and not drop:
            raise UsageError("expected --seed, --fire or --drop: what is to be another")
        expect_writable(output)
        try:
            recorded = read_record(read_input(file))
            fires = [read_hit(text, "--fire") for text in fire or ()]
            drops = [read_hit(text, "--drop") for text in drop or ()]
            branched = leave(recorded, at, seed=seed, fire=fires, drop=drops)
        except RecordError as error:
            raise UsageError(f"{file}: {error}") from error
        except BranchError as error:
            raise UsageError(str(error)) from error
        if output is not None:
            lines = record_lines(branched.plan, branched.result)
            write_output(output, "".join(f"{line}\n" for line in lines))
        _tell(recorded, branched, at)
        result = branched.result
        raise typer.Exit(VIOLATION if result.violation is not None else UNKNOWN if result.unknown else OK)


def _tell(recorded: Recorded, branched: Branched, at: int) -> None:
    """Where the two part, and how the branch ends."""
    result, parted = branched.result, branched.parted
    if parted is None:
        print(f"the same to the end, though branched behind record {at}")
    else:
        print(f"branched behind record {at}; record {parted} is the first that is another")
        for name, lines in (("was", recorded.lines), ("now", result.lines)):
            print(f"  {name} {lines[parted] if parted < len(lines) else '(it ends here)'}")
    found = result.violation
    if found is None and result.unknown:
        print(result.unknown, file=sys.stderr)
    if found is not None:
        print(f"violation: {found.check} at step {found.step}, {found.t_ns / 1e9:.6f} s: {found.text}", file=sys.stderr)
    print(f"steps: {result.steps}, faults fired: {len(result.fired)}, records: {len(result.lines)}")
