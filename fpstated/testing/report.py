"""What the plugin says: a section of a failed test, and a summary of all runs."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from fpstated.testing.artifacts import folder_of, write_run, write_small, write_world
from fpstated.testing.options import RAN, WORLDS

if TYPE_CHECKING:
    from fpstated.testing.run import FaultRun
    from fpstated.testing.sim_world import SimWorld

#: So many hits that fired are shown.
_SHOWN: Final = 10
_FIGURES: Final = ("runs", "steps", "violations", "fired")


def note(item: pytest.Item, report: pytest.TestReport) -> None:
    """Put the figures of a test's runs into its report, and into that of a failed one how to see it again."""
    ran = item.stash.get(RAN, None)
    if ran is not None:
        report.fpstate = ran.figures  # type: ignore[attr-defined] # a report carries what is set, from a worker too
        if report.failed and ran.last is not None:
            report.sections.append(("fault run", "\n".join(_section(item, ran.last))))
    if report.failed:
        worlds: list[SimWorld] = item.stash.get(WORLDS, [])
        for nr, world in enumerate(worlds):
            report.sections.append(("fault world", "\n".join(_world(item, world, nr))))


def _world(item: pytest.Item, world: SimWorld, nr: int) -> Iterator[str]:
    """Where a world stands that a test has stepped through: the test itself is what repeats it."""
    folder = folder_of(item) / f"world-{nr}"
    files = list(write_world(folder, world))
    there = world.world
    goes_on = f"next: {world.next}" if world.next else "over" if world.over else "not begun"
    yield f"world {world.plan.name}, seed {world.seed}, after step {there.steps} at {world.now_s:.6f} s, {goes_on}"
    yield f"artefacts: {folder}"
    yield f"  {', '.join(files)}"


def _section(item: pytest.Item, run: FaultRun) -> Iterator[str]:
    folder = folder_of(item)
    files = list(write_run(folder, run))
    where = f" ({run.word})" if run.word else ""
    varied = f", {run.varied}" if run.varied and run.varied != f"seed {run.seed}" else ""
    fired = len(run.fired)
    yield (
        f"plan {run.plan.name}{where}, seed {run.seed}{varied}: {run.result.steps} steps,"
        f" {run.result.t_ns / 1e9:.6f} s, {fired} {'fault' if fired == 1 else 'faults'} fired"
    )
    for hit in run.fired[:_SHOWN]:
        yield f"  {hit.fault or 'scheduled'}: {hit.point}, hit {hit.hit} of {hit.entity}: {hit.action!r}"
    if fired > _SHOWN:
        yield f"  and {fired - _SHOWN} more: history.jsonl"
    yield f"repeat: {_pytest_again(item, run, folder)}"
    yield f"        {_command_again(run, folder)}"
    yield f"artefacts: {folder}"
    yield f"  {', '.join(files)}"
    shrink = item.config.option.fault_shrink
    if shrink and run.violation is not None:
        yield f"small: {write_small(folder, run, int(shrink))}"


def _pytest_again(item: pytest.Item, run: FaultRun, folder: Path) -> str:
    """The one command: by the seed where that makes the run, by the record of the run elsewhere.

    A path stands behind a ``=``: pytest takes a word of its own for a path at which it looks for its ini file.
    """
    here = item.config.invocation_params.dir
    name = item.nodeid.partition("::")[2].partition("[")[0]
    words = ["pytest", f"{os.path.relpath(item.path, here)}::{name}"]
    if not run.seeded:
        return shlex.join([*words, f"--fault-replay={folder / 'history.jsonl'}"])
    words += [f"--fault-plan={item.config.option.fault_plan}"] if item.config.option.fault_plan else []
    words += ["--fault-live"] if run.live else []
    return shlex.join([*words, "--fault-seed", str(run.seed)])


def _command_again(run: FaultRun, folder: Path) -> str:
    group = "live" if run.live else "sim"
    return shlex.join(["fpstated", group, "run", run.word or str(folder / "plan.json"), "--seed", str(run.seed)])


# -- the summary -------------------------------------------------------------------------------------------------------


def summary(terminal: pytest.TerminalReporter) -> None:
    """What was never seen; with -v the figures of each test and of all."""
    tests = _by_test(terminal)
    unseen = list(_unseen(tests))
    verbose = terminal.config.get_verbosity() > 0
    if not unseen and not verbose:
        return
    terminal.section("fault runs")
    if verbose:
        total: Counter[str] = Counter()
        for name, figures in tests.items():
            terminal.line(f"{name}: {_line(figures[0])}")
            total.update(figures[0])
        if len(tests) > 1:
            terminal.line(f"in all: {_line(total)}")
    for line in unseen:
        terminal.line(line)


def _by_test(terminal: pytest.TerminalReporter) -> dict[str, tuple[Counter[str], set[str], set[str]]]:
    """Figures, what was seen and what was to be seen, by the names of tests without their parameters."""
    found: dict[str, tuple[Counter[str], set[str], set[str]]] = {}
    for report in (report for reports in terminal.stats.values() for report in reports):
        figures: dict[str, Any] | None = getattr(report, "fpstate", None)
        if figures is None:
            continue
        counts, seen, wanted = found.setdefault(report.nodeid.partition("[")[0], (Counter(), set(), set()))
        counts.update({name: figures[name] for name in _FIGURES})
        seen.update(figures["seen"])
        wanted.update(figures["wanted"])
    return dict(sorted(found.items()))


def _line(figures: Counter[str]) -> str:
    return (
        f"runs: {figures['runs']}, steps: {figures['steps']}, violations: {figures['violations']},"
        f" faults fired: {figures['fired']}"
    )


def _unseen(tests: dict[str, tuple[Counter[str], set[str], set[str]]]) -> Iterator[str]:
    for name, (figures, seen, wanted) in tests.items():
        for what in sorted(wanted - seen):
            yield f"{name}: never seen in {figures['runs']} runs: {what}"
