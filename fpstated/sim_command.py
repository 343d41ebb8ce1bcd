"""``fpstated sim``: run a plan in the simulated world, run a recorded run again, shrink one that fails.

Status: 0 all is well, 1 a check does not hold (or a replay went another way), 2 nothing can be said or the words are
wrong, 3 the simulator itself is wrong.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fpstated.faults_command import PlanFile

if TYPE_CHECKING:
    from fpstate.fault.v1 import plan_pb2

    from fault_lab.sim.run import RunResult

sim = typer.Typer(
    help="The simulated world: a plan on a virtual clock, checked after every step.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

OK, VIOLATION, UNKNOWN, BROKEN = 0, 1, 2, 3
_SEEDS_MAX = 10_000_000


@contextmanager
def _complaints(command: str) -> Iterator[None]:
    """What is wrong with a plan or the words is status 2, with the simulator 3."""
    if find_spec("yaml") is None or find_spec("numpy") is None:
        _say(command, "this install is a guest's; this needs: pip install 'fpstated[lab]'")
        raise typer.Exit(UNKNOWN)
    from fault_lab.plan.problem import PlanError

    try:
        yield
    except typer.Exit:
        raise
    except PlanError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(UNKNOWN) from None
    except (_UsageError, OSError) as error:
        _say(command, str(error))
        raise typer.Exit(UNKNOWN) from None
    except Exception:  # noqa: BLE001 -- whatever it is: a run that breaks has found nothing
        traceback.print_exc()
        _say(command, "a bug of the simulator, see above")
        raise typer.Exit(BROKEN) from None


class _UsageError(ValueError):
    """Words that cannot be right."""


def _say(command: str, text: str) -> None:
    print(f"fpstated sim {command}: {text}", file=sys.stderr)


@sim.command()
def run(
    plan: PlanFile,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The seed; the plan's own where none is given.")] = None,
    seeds: Annotated[str, typer.Option(metavar="A..B", help="All of these seeds, both ends included.")] = "",
    twice: Annotated[bool, typer.Option("--twice", help="Run each twice; both must be the same.")] = False,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what has happened, as JSON lines.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: the certificate of each run.")] = False,
) -> None:
    """Run a plan: one seed is one world. The last line counts; a violation comes with the command that repeats it."""
    with _complaints("run"):
        from fault_lab.sim.run import DivergenceError, simulate, simulate_twice

        loaded = _loaded(plan)
        chosen = _seeds(loaded.seed if seed is None else seed, seeds, given=seed is not None)
        if history is not None and len(chosen) > 1:
            raise _UsageError("expected one seed with --history")
        tally = _Tally()
        for each in chosen:
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
        print(tally.line, file=sys.stderr if as_json else sys.stdout)
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
        self.unknown += result.violation is None and result.cut_short
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
        print(f"repeat: fpstated sim run {plan} --seed {result.seed}", file=sys.stderr)
    elif result.cut_short:
        print(f"seed {result.seed}: the budget ended the run, nothing is known about its end", file=sys.stderr)


def _loaded(name: str) -> plan_pb2.Plan:
    """A plan whose checks are all known."""
    from fault_lab.plan.load import load_plan
    from fault_lab.plans import find_plan
    from fault_lab.sim.run import unknown_checks

    if name == "-":
        loaded = load_plan(sys.stdin.read(), "stdin")
    else:
        path = find_plan(name)
        loaded = load_plan(path.read_text(encoding="utf-8"), name if Path(name).exists() else path.name)
    complaints = unknown_checks(loaded)
    if complaints:
        raise _UsageError("\n".join(complaints))
    return loaded


def _seeds(one: int, text: str, *, given: bool) -> range:
    if not text:
        return range(one, one + 1)
    if given:
        raise _UsageError("expected --seed or --seeds, got both")
    found = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if found is None or not 0 <= int(found[2]) - int(found[1]) < _SEEDS_MAX:
        raise _UsageError(f"--seeds: expected A..B with A <= B, at most {_SEEDS_MAX} seeds, got {text!r}")
    return range(int(found[1]), int(found[2]) + 1)


def _write(path: Path, plan: plan_pb2.Plan, result: RunResult) -> None:
    from fault_lab.sim.record import record_lines

    path.write_text("".join(f"{line}\n" for line in record_lines(plan, result)), encoding="utf-8")


@sim.command()
def replay(file: Annotated[Path, typer.Argument(metavar="FILE", help="What `sim run --history` wrote.")]) -> None:
    """Run a recorded run again, and compare. Status 1 where it goes another way; the first record that differs."""
    with _complaints("replay"):
        from fault_lab.sim.record import RecordError, read_record
        from fault_lab.sim.record import replay as run_again

        try:
            recorded = read_record(file.read_text(encoding="utf-8"))
        except (RecordError, UnicodeDecodeError) as error:
            raise _UsageError(f"{file}: {error}") from error
        again = run_again(recorded)
        if again.divergence is not None:
            print(f"record {again.divergence} differs\n  was {again.was}\n  now {again.now}", file=sys.stderr)
            raise typer.Exit(VIOLATION)
        print(f"the same: {len(again.result.lines)} records, sha256 {again.result.digest}")


@sim.command()
def shrink(
    plan: PlanFile,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The seed; the plan's own where none is given.")] = None,
    runs: Annotated[int, typer.Option(metavar="N", help="At most so many runs.", min=1)] = 1000,
    output: Annotated[Path | None, typer.Option("-o", metavar="FILE", help="Where the small plan goes.")] = None,
) -> None:
    """Find as few faults as it takes for the same check to fail; the small plan is written as JSON."""
    with _complaints("shrink"):
        from fault_lab.plan.canonical import readable_json
        from fault_lab.sim.run import simulate
        from fault_lab.sim.shrink import Shrinker

        loaded = _loaded(plan)
        drawn = loaded.seed if seed is None else seed
        found = simulate(loaded, drawn).violation
        if found is None:
            raise _UsageError(f"seed {drawn} violates nothing")
        shrunk = Shrinker(loaded, drawn, found.check, runs_max=runs).shrink()
        assert shrunk is not None, "a run is the same each time"
        text = readable_json(shrunk.plan)
        if output is not None:
            output.write_text(text, encoding="utf-8")
        else:
            print(text, end="")
        left = len(shrunk.plan.schedule.hits) if shrunk.exact else len(shrunk.plan.faults)
        kind = "hits" if shrunk.exact else "faults"
        print(f"{found.check}: {left} {kind} left after {shrunk.runs} runs", file=sys.stderr)
