"""Progress of long work: a bar on standard error where that is a terminal, and nothing where it is not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

#: Called with how much is done by now, of the whole that was announced.
Step = Callable[[int], None]


@contextmanager
def progress(what: str, total: int) -> Iterator[Step]:
    """Show how many bytes of ``total`` are done, until the end of the block."""
    with _bar(DownloadColumn(binary_units=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Show how far each of several things is that come one after the other: what, how many are done, of how many."""
    with _bar(MofNCompleteColumn()) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _bar(counted: ProgressColumn) -> Progress:
    """It is gone when the work is done: what came of that is on standard output."""
    columns = (TextColumn("{task.description}"), BarColumn(), counted, TimeElapsedColumn(), TimeRemainingColumn())
    out = Console(stderr=True, highlight=False)
    # What is printed meanwhile stands above the bar; but standard output that goes to a file or a pipe stays there.
    beside = sys.stdout.isatty()
    return Progress(*columns, console=out, transient=True, redirect_stdout=beside, disable=not sys.stderr.isatty())
