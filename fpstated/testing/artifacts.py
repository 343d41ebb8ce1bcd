"""What is left of a failed test: its plan, its history, a page of its timeline, and a small plan that fails so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fpstated.testing.options import given_artifacts

if TYPE_CHECKING:
    from fpstated.testing.run import FaultRun
    from fpstated.testing.sim_world import SimWorld


def folder_of(item: pytest.Item) -> Path:
    """The folder of a test, made: below what was given, or in pytest's own area, where no other process writes."""
    given = given_artifacts(item.config)
    factory: pytest.TempPathFactory = item._request.getfixturevalue("tmp_path_factory")  # type: ignore[attr-defined] # noqa: SLF001
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", item.nodeid).strip("-")
    folder = (given or factory.getbasetemp() / "fault-artifacts") / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_run(folder: Path, run: FaultRun) -> Iterator[str]:
    """Write a run down; yields the names of the files."""
    from fault_lab.pictures.recording import read_recording
    from fault_lab.pictures.timeline_page import timeline_page
    from fault_lab.plan.canonical import readable_json
    from fault_lab.sim.record import record_lines

    lines = list(record_lines(run.plan, run.result, live=run.live))
    yield _written(folder / "plan.json", readable_json(run.plan))
    yield _written(folder / "history.jsonl", "".join(f"{line}\n" for line in lines))
    yield _written(folder / "timeline.html", timeline_page(read_recording("\n".join(lines))))


def write_world(folder: Path, world: SimWorld) -> Iterator[str]:
    """Write down the plan of a world and what has happened in it; yields the names of the files."""
    from fault_lab.plan.canonical import readable_json
    from fault_lab.sim.history import chained

    folder.mkdir(exist_ok=True)
    yield _written(folder / "plan.json", readable_json(world.plan))
    lines = chained(world.world.history.lines)
    yield _written(folder / "history.jsonl", "".join(f"{line}\n" for line in lines))


def write_small(folder: Path, run: FaultRun, runs_max: int) -> str:
    """Make a violation small, and write its plan and a test that fails so; returns what came of it, in words."""
    from fault_lab.plan.canonical import readable_json
    from fault_lab.sim.as_test import pytest_text
    from fault_lab.sim.shrink import Shrinker

    assert run.violation is not None, "there is something to make small"
    shrunk = Shrinker(run.plan, run.seed, run.violation.check, runs_max=runs_max).shrink()
    if shrunk is None or shrunk.result.violation is None:
        return "not made small: simulated again, it does not fail"
    _written(folder / "small.json", readable_json(shrunk.plan))
    _written(folder / "test_small.py", pytest_text(shrunk.plan, shrunk.result.violation, "test_small.py"))
    count = len(shrunk.plan.schedule.hits) if shrunk.exact else len(shrunk.plan.faults)
    kind = "hit" if shrunk.exact else "fault"
    return f"{count} {kind}{'s' if count != 1 else ''} after {shrunk.runs} runs: small.json, test_small.py"


def _written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return path.name
