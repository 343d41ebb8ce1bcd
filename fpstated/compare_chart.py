"""A comparison as a chart: one self-contained SVG, small multiples of four bars each.

Every bar has its policy beside it and its value behind it, so nothing depends on colour; the colours are four of the
palette of Okabe and Ito, which people with any kind of colour vision can tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from fpstated.compare_policies import Comparison, PolicyFigures
from fpstated.compare_table import PER_RUN, per_run

_COLOURS: Final = {"on_swap": "#0072B2", "on_write": "#56B4E9", "on_cpuid": "#E69F00", "three_buffer": "#D55E00"}
_OTHER: Final = "#777777"

_FONTS: Final = "DejaVu Sans, Helvetica, Arial, sans-serif"

#: Geometry, in pixels.
_PANEL_WIDTH: Final = 400
_PANEL_HEIGHT: Final = 132
_TOP: Final = 60
_NAME_WIDTH: Final = 92
_BAR_WIDTH: Final = 210
_BAR_HEIGHT: Final = 17
_ROW_HEIGHT: Final = 23


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    value: Callable[[PolicyFigures], float]


_PANELS: Final = (
    _Panel("Bytes copied by memcpy, per vcpu_run", lambda row: per_run(row.total, PER_RUN["memcpy B"])),
    _Panel("XFD copied between containers, per vcpu_run", lambda row: per_run(row.total, PER_RUN["XFD copies"])),
    _Panel(
        "XSAVE and XRSTOR executed, per vcpu_run",
        lambda row: per_run(row.total, lambda figures: figures.saves + figures.restores),
    ),
    _Panel("XFD register writes, per vcpu_run", lambda row: per_run(row.total, PER_RUN["XFD writes"])),
)


def _memory_panels(found: Comparison) -> tuple[_Panel, _Panel]:
    """Bytes of two vCPUs: of the guest that needs the least where memory is taken on demand, and the most."""
    guests = found.policies[0].guests
    least = min(range(len(guests)), key=lambda nr: guests[nr].rest_bytes)
    most = max(range(len(guests)), key=lambda nr: guests[nr].peak_bytes)
    return (
        _Panel(f"Bytes at rest, guest {guests[least].name}", lambda row: row.guests[least].rest_bytes),
        _Panel(f"Bytes at the peak, guest {guests[most].name}", lambda row: row.guests[most].peak_bytes),
    )


def svg(found: Comparison) -> str:
    """Return the chart."""
    panels = (*_memory_panels(found), *_PANELS)
    height = _TOP + _PANEL_HEIGHT * ((len(panels) + 1) // 2)
    width = 2 * _PANEL_WIDTH + 20
    title = f"{found.what} on {found.profile}, {len(found.policies[0].guests)} guests: four allocation policies"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<g font-family="{_FONTS}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="20" y="32" font-size="16" font-weight="bold" fill="#222222">{escape(title)}</text>',
    ]
    for nr, panel in enumerate(panels):
        lines += _panel(panel, found.policies, 20 + nr % 2 * _PANEL_WIDTH, _TOP + nr // 2 * _PANEL_HEIGHT)
    return "\n".join([*lines, "</g>", "</svg>", ""])


def _panel(panel: _Panel, rows: tuple[PolicyFigures, ...], x: int, y: int) -> Iterator[str]:
    yield f'<text x="{x}" y="{y + 12}" font-size="13" fill="#222222">{escape(panel.title)}</text>'
    values = [panel.value(row) for row in rows]
    most = max(values) or 1.0
    for nr, (row, value) in enumerate(zip(rows, values, strict=True)):
        top = y + 22 + nr * _ROW_HEIGHT
        bar = round(_BAR_WIDTH * value / most, 1)
        baseline = top + 13
        yield (
            f'<text x="{x + _NAME_WIDTH - 8}" y="{baseline}" font-size="12" text-anchor="end" fill="#222222">'
            f"{escape(row.policy)}</text>"
        )
        yield (
            f'<rect x="{x + _NAME_WIDTH}" y="{top}" width="{max(bar, 1.0)}" height="{_BAR_HEIGHT}"'
            f' fill="{_COLOURS.get(row.policy, _OTHER)}"/>'
        )
        yield (
            f'<text x="{x + _NAME_WIDTH + max(bar, 1.0) + 6}" y="{baseline}" font-size="12" fill="#222222">'
            f"{_number(value)}</text>"
        )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"
