"""A coverage matrix as text for a terminal, and as values for a machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fault_lab.pictures.coverage import Coverage
from fault_lab.pictures.coverage_cells import Cells


def coverage_lines(coverage: Coverage) -> Iterator[str]:
    """A table: a line for each point and state that was reached, then what was not and what cannot be."""
    cells = Cells(coverage)
    wide = max(len(name) for name in cells.states)
    heads = [name.lower().replace("_", "-") for name in cells.decisions]
    yield f"{'':<{wide + 2}}  {'  '.join(heads)}"
    for point in cells.points:
        reason = cells.why_not(point)
        if reason:
            continue
        yield f"{point}: {coverage.hits[point]} hits fired"
        for state in cells.states:
            counts = [cells.count(point, state, decision) for decision in cells.decisions]
            if any(counts):
                row = "  ".join(f"{count or '.':>{len(head)}}" for count, head in zip(counts, heads, strict=True))
                yield f"  {state:<{wide}}  {row}"
        never = cells.never(point)
        if never:
            yield f"  never: {'; '.join(never)}"
    for reason, points in _left_out(cells).items():
        yield f"{reason}: {', '.join(points)}"
    yield f"no policy of the plan decides: {', '.join(cells.unasked) or 'nothing is left out'}"
    reached, open_ = totals(cells)
    yield f"runs: {coverage.runs}, cells reached: {reached} of {open_}"


def _left_out(cells: Cells) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for point in cells.points:
        reason = cells.why_not(point)
        if reason:
            found.setdefault(reason, []).append(point)
    return found


def totals(cells: Cells) -> tuple[int, int]:
    """How many cells were reached, and how many could be."""
    able = [
        (point, state, decision)
        for point in cells.points
        if not cells.why_not(point)
        for state in cells.states
        if not cells.why_not(point, state)
        for decision in cells.decisions
    ]
    return sum(cells.count(*cell) > 0 for cell in able), len(able)


def coverage_values(coverage: Coverage) -> dict[str, Any]:
    """The same for machines."""
    cells = Cells(coverage)
    reached, able = totals(cells)
    return {
        "plan": str(coverage.plan.get("name", "")),
        "runs": coverage.runs,
        "reached": reached,
        "reachable": able,
        "cells": [
            {"point": point, "state": state, "decision": decision, "count": count}
            for (point, state, decision), count in sorted(coverage.cells.items())
        ],
        "never": {point: cells.never(point) for point in cells.points if not cells.why_not(point)},
        "impossible": {
            point: {state: cells.why_not(point, state) for state in cells.states if cells.why_not(point, state)}
            for point in cells.points
        },
    }
