"""A comparison as a table for the terminal and for the docs, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from fpstated.compare_policies import Comparison, GuestFigures, PolicyFigures
from host_agent.figures import Figures

#: What is shown per vcpu_run: the column's head, and the total it is an average of.
PER_RUN: Final[dict[str, Callable[[Figures], int]]] = {
    "memcpy B": lambda each: each.bytes_copied,
    "XSAVE": lambda each: each.saves,
    "XRSTOR": lambda each: each.restores,
    "XSAVE B": lambda each: each.bytes_saved,
    "XRSTOR B": lambda each: each.bytes_restored,
    "XFD writes": lambda each: each.xfd_writes,
    "XFD copies": lambda each: each.xfd_copies,
}


def per_run(figures: Figures, of: Callable[[Figures], int]) -> float:
    """Return the average per vcpu_run, 0 where nothing ran."""
    return of(figures) / figures.vcpu_runs if figures.vcpu_runs else 0.0


def table(found: Comparison) -> str:
    """Return the comparison as lines of text, none longer than 100 characters."""
    guests = [guest.name for guest in found.policies[0].guests]
    return "\n".join(
        [
            f"{found.what} on {found.profile}: {', '.join(guests)}",
            "",
            *_rows(["per vcpu_run", *PER_RUN], [_per_run(row) for row in found.policies]),
            "",
            *_rows(
                ["in total", "vcpu_runs", "exits", "allocations", "B allocated"],
                [_in_total(row) for row in found.policies],
            ),
            "",
            *_rows(["peak B/vCPU", *guests], [_bytes(row, lambda guest: guest.peak_bytes) for row in found.policies]),
            "",
            *_rows(
                ["B/vCPU at rest", *guests], [_bytes(row, lambda guest: guest.rest_bytes) for row in found.policies]
            ),
            "",
            f"allocation {found.fail_nth} fails once, and then",
            *(line for row in found.policies for line in _failure(row)),
        ]
    )


def _per_run(row: PolicyFigures) -> list[str]:
    values = (per_run(row.total, of) for of in PER_RUN.values())
    return [row.policy, *(f"{value:,.0f}" if value >= 100 else f"{value:.2f}" for value in values)]


def _in_total(row: PolicyFigures) -> list[str]:
    total = row.total
    return [
        row.policy,
        f"{total.vcpu_runs}",
        f"{row.exits}",
        f"{total.allocations}",
        f"{total.bytes_allocated:,}",
    ]


def _bytes(row: PolicyFigures, of: Callable[[GuestFigures], int]) -> list[str]:
    return [row.policy, *(f"{of(guest):,}" for guest in row.guests)]


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[nr]) for line in (head, *rows)) for nr in range(len(head))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(widths[nr]) for nr, cell in enumerate(line[1:], start=1))])
        for line in (head, *rows)
    ]


def _failure(row: PolicyFigures) -> list[str]:
    first, *others = row.failure
    lines = [f"  {row.policy:<12}  {first}"]
    return [*lines, f"{'':16}{'; '.join(others)}"] if others else lines


def to_json(found: Comparison) -> str:
    """Return the comparison as JSON: every count, in total, per vcpu_run and per guest."""
    record = {
        "what": found.what,
        "profile": found.profile,
        "fail_nth": found.fail_nth,
        "policies": {row.policy: _row(row) for row in found.policies},
    }
    return json.dumps(record, indent=2) + "\n"


def _row(row: PolicyFigures) -> dict[str, Any]:
    total = asdict(row.total) | {"exits": row.exits}
    runs = total["vcpu_runs"] or 1
    return {
        "total": total,
        "per_vcpu_run": {name: round(count / runs, 3) for name, count in total.items()},
        "peak_bytes_per_vcpu": max(guest.peak_bytes for guest in row.guests),
        "guests": {guest.name: _guest(guest) for guest in row.guests},
        "failed_allocation": list(row.failure),
    }


def _guest(guest: GuestFigures) -> dict[str, Any]:
    return asdict(guest.figures) | {
        "exits": guest.exits,
        "peak_bytes": guest.peak_bytes,
        "bytes_at_rest": guest.rest_bytes,
        "outcome": guest.outcome,
        "notes": list(guest.notes),
    }
