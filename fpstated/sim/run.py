"""``fpstated sim run``: a plan, with one seed or many."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fpstated.faults_command import PlanFile
from fpstated.files import expect_writable, write_output
from fpstated.progress import stages
from fpstated.sim.shared import BROKEN, OK, UNKNOWN, VIOLATION, Seed, UsageError, complaints, loaded_plan, sim_command

if TYPE_CHECKING:
    from fpstate.fault.v1 import plan_pb2

    from fault_lab.sim.run import RunResult

_SEEDS_MAX: Final = 10_000_000


def run(
    plan: PlanFile,
    seed: Seed = None,
    seeds: Annotated[str, typer.Option(metavar="A..B", help="All of these seeds, both ends included.")] = "",
    twice: Annotated[bool, typer.Option("--twice", help="Run each twice; both must be the same.")] = False,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what has happened, as JSON lines; - for standard output.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: the certificate of each run.")] = False,
) -> None:
    """Run a plan: one seed is one world. The last line counts; a violation comes with the command that repeats it."""
    with complaints("run"):
        from fault_lab.sim.run import DivergenceError, simulate, simulate_twice

        expect_writable(history)
        loaded = loaded_plan(plan)
        chosen = chosen_seeds(loaded.seed if seed is None else seed, seeds, given=seed is not None)
        if history is not None and len(chosen) > 1:
            raise UsageError("expected one seed with --history")
        tally = _Tally()
        with stages() as heard:
            for each in chosen:
                heard(f"seed {each}", tally.runs, len(chosen))
                try:
                    result = (simulate_twice if twice else simulate)(loaded, each)
                except DivergenceError as error:
                    print(f"seed {each}: {error}", file=sys.stderr)
                    raise typer.Exit(BROKEN) from None
                if history is not None:
                    _write(history, loaded, result)
                tally.add(result)
                if as_json:
                    print(json.dumps(result.certificate))
                _report(plan, result)
        unseen = [name for name in loaded.checks.sometimes if name not in tally.seen]
        for name in unseen:
            print(f"never seen: {name}", file=sys.stderr)
        print(tally.line, file=sys.stderr if as_json or str(history) == "-" else sys.stdout)
        raise typer.Exit(VIOLATION if tally.violations else UNKNOWN if unseen or tally.unknown else OK)


class _Tally:
    """What came of the runs so far."""

    def __init__(self) -> None:
        self.runs = self.steps = self.violations = self.fired = self.unknown = 0
        self.seen: set[str] = set()

    def add(self, result: RunResult) -> None:
        """Count a run."""
        self.runs += 1
        self.steps += result.steps
        self.violations += result.violation is not None
        self.unknown += result.violation is None and bool(result.unknown)
        self.fired += len(result.fired)
        self.seen |= result.seen

    @property
    def line(self) -> str:
        """The figures."""
        return f"runs: {self.runs}, steps: {self.steps}, violations: {self.violations}, faults fired: {self.fired}"


def _report(plan: str, result: RunResult) -> None:
    """A violation, and the one command that shows it again."""
    found = result.violation
    if found is not None:
        print(f"violation: {found.check} at step {found.step}, {found.t_ns / 1e9:.6f} s: {found.text}", file=sys.stderr)
        print(f"repeat: {sim_command()} run {plan} --seed {result.seed}", file=sys.stderr)
    elif result.unknown:
        print(f"seed {result.seed}: {result.unknown}", file=sys.stderr)


def chosen_seeds(one: int, text: str, *, given: bool) -> range:
    """The seeds that the words mean: one, or both ends of ``A..B`` and all between."""
    if not text:
        return range(one, one + 1)
    if given:
        raise UsageError("expected --seed or --seeds, got both")
    found = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if found is None or not 0 <= int(found[2]) - int(found[1]) < _SEEDS_MAX:
        raise UsageError(f"--seeds: expected A..B with A <= B, at most {_SEEDS_MAX} seeds, got {text!r}")
    return range(int(found[1]), int(found[2]) + 1)


def _write(path: Path, plan: plan_pb2.Plan, result: RunResult) -> None:
    from fault_lab.sim.record import record_lines

    write_output(path, "".join(f"{line}\n" for line in record_lines(plan, result)))
