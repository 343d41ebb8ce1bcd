"""A row of the table, and the two ways it is written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.pairs import Pairs


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``reference`` is the floor it is held against, ``ratio`` is value / reference; None where none is.

    ``goal`` says in words what ``ok`` was decided by. ``spread`` is the quartiles of the ratio, where it was measured
    in pairs of blocks.
    """

    name: str
    unit: str
    value: float
    reference: float | None
    ratio: float | None
    goal: str
    ok: bool
    note: str = ""
    spread: tuple[float, float] | None = None


def counted(name: str, unit: str, value: float, *, at_most: float, note: str = "") -> Row:
    """A figure that is counted, with the most it may be."""
    return Row(name, unit, value, None, None, f"<= {at_most:,.6g}", value <= at_most, note)


def measured(name: str, unit: str, value: float, *, note: str = "") -> Row:
    """A figure without a goal."""
    return Row(name, unit, value, None, None, "none set", ok=True, note=note)


def paired(name: str, unit: str, value: float, reference: float, *, at_least: float | None, note: str = "") -> Row:
    """A rate beside its floor's, with the least their ratio may be; None where no goal is set."""
    ratio = value / reference
    goal = "none set" if at_least is None else f"ratio >= {at_least:.3g}"
    return Row(name, unit, value, reference, ratio, goal, at_least is None or ratio >= at_least, note)


def by_turns_row(
    name: str,
    unit: str,
    pairs: Pairs,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> Row:
    """What was measured by turns with its floor, with the least or the most the ratio may be."""
    goal, ok = "none set", True
    if at_least is not None:
        goal, ok = f"ratio >= {at_least:.3g}", pairs.ratio >= at_least
    elif at_most is not None:
        goal, ok = f"ratio <= {at_most:.3g}", pairs.ratio <= at_most
    return Row(name, unit, pairs.value, pairs.reference, pairs.ratio, goal, ok, note, (pairs.low, pairs.high))


def write_json(rows: Iterable[Row], path: Path) -> None:
    """Write the rows as a JSON list; notes are for people."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([_record(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def _record(row: Row) -> dict[str, object]:
    record = asdict(row)
    del record["note"]
    return record


def print_table(rows: Iterable[Row]) -> None:
    """Print the rows for a person."""
    table = Table(title="bench", title_justify="left")
    for heading in ("row", "value", "unit", "reference", "ratio", "goal", ""):
        table.add_column(heading, justify="right" if heading in ("value", "reference", "ratio") else "left")
    notes = []
    for row in rows:
        reference = _figure(row.reference) if row.reference is not None else ""
        ratio = f"{row.ratio:.3g}" if row.ratio is not None else ""
        if row.spread is not None:
            ratio += f" ({row.spread[0]:.3g}..{row.spread[1]:.3g})"
        mark = "meets" if row.ok else "short"
        table.add_row(row.name, _figure(row.value), row.unit, reference, ratio, row.goal, mark)
        if row.note:
            notes.append(f"{row.name}: {row.note}")
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width to fit into
        console = Console(width=150)
    console.print(table)
    for note in notes:
        console.print(f"  {note}", highlight=False)
