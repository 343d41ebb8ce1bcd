"""``fpstated live run``: a plan on real processes, once."""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fpstated.faults_command import PlanFile
from fpstated.files import expect_writable, write_output
from fpstated.live.shared import live_complaints
from fpstated.sim.shared import INTERRUPTED, OK, UNKNOWN, VIOLATION, Seed, UsageError, loaded_plan

if TYPE_CHECKING:
    from fpstate.fault.v1 import plan_pb2

    from fault_lab.live.run import LiveResult


def run(
    ctx: typer.Context,
    plan: PlanFile,
    seed: Seed = None,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what has happened, as JSON lines.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: the certificate of the run.")] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT", help="Leave a fault of the plan out. May be given several times."),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            "-d",
            "--directory",
            metavar="DIR",
            help="Where sockets, journals and logs go, and stay; else a directory of the run's.",
        ),
    ] = None,
) -> None:
    """Run a plan on real processes, in real time. The last line counts; a violation comes with the command again."""
    with live_complaints("run"):
        import signal

        from fault_lab.live.cluster import NotReadyError
        from fault_lab.live.judge import JUDGED
        from fault_lab.live.possible import check_possible, without_faults
        from fault_lab.live.run import run_live

        expect_writable(history)
        loaded = without_faults(loaded_plan(plan), without or [])
        check_possible(loaded, plan)
        for name in (*loaded.checks.always, *loaded.checks.eventually):
            if name not in JUDGED:
                print(f"not judged: {name}: only the simulator can tell", file=sys.stderr)
        with ExitStack() as stack:
            where = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fpstated-live-")))
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as by Ctrl-C: nothing is left behind
            try:
                result = run_live(loaded, where, seed, broken=ctx.obj)
            except NotReadyError as error:
                raise UsageError(str(error)) from error
            except KeyboardInterrupt:
                print("fpstated live run: interrupted; every process it started is stopped", file=sys.stderr)
                raise typer.Exit(INTERRUPTED) from None
            if history is not None:
                _write(history, loaded, result)
        if as_json:
            print(json.dumps(result.certificate))
        _report(plan, result, without or [])
        unseen = [name for name in loaded.checks.sometimes if name not in result.seen]
        for name in unseen:
            print(f"never seen: {name}", file=sys.stderr)
        print(_line(result), file=sys.stderr if as_json or str(history) == "-" else sys.stdout)
        raise typer.Exit(VIOLATION if result.violation else UNKNOWN if unseen or result.unknown else OK)


def _report(plan: str, result: LiveResult, without: list[str]) -> None:
    """A violation, and the one command that tries it again."""
    found = result.violation
    if found is not None:
        print(
            f"violation: {found.check} at record {found.step}, {found.t_ns / 1e9:.6f} s: {found.text}", file=sys.stderr
        )
        left_out = "".join(f" --without {name}" for name in without)
        version = f"live --broken {result.broken}" if result.broken else "live"
        print(f"repeat: fpstated {version} run {plan} --seed {result.seed}{left_out}", file=sys.stderr)
    elif result.unknown:
        print(f"seed {result.seed}: {result.unknown}", file=sys.stderr)


def _line(result: LiveResult) -> str:
    """The figures."""
    violations = int(result.violation is not None)
    return f"live: 1 run, {result.steps} records, {violations} violations, {len(result.fired)} faults fired"


def _write(path: Path, plan: plan_pb2.Plan, result: LiveResult) -> None:
    from fault_lab.sim.record import record_lines

    write_output(path, "".join(f"{line}\n" for line in record_lines(plan, result, live=True)))
