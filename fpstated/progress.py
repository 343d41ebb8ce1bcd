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
def progress(what: str, total: int | None, *, in_bytes: bool = False) -> Iterator[Step]:
    """Show how far ``what`` is until the end of the block; ``total`` is None where nobody knows."""
    counted: ProgressColumn = DownloadColumn(binary_units=True) if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), counted, TimeElapsedColumn(), TimeRemainingColumn())
    out = Console(stderr=True, highlight=False)
    with Progress(*columns, console=out, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
