"""A coverage matrix as a page: a row for each fault point, a column for each state and decision."""

from __future__ import annotations

from collections.abc import Iterator
from math import log2
from typing import Final

from fault_lab.pictures.coverage import Coverage
from fault_lab.pictures.coverage_cells import Cells
from fault_lab.pictures.coverage_text import totals
from fault_lab.pictures.html import page, tag
from fault_lab.pictures.vcpu_states import STATES

#: Shades of a count: one for every doubling, and the darkest for all beyond.
_SHADES: Final = 8
_COUNTED: Final = (
    "A hit that fired counts once for each vCPU that it concerns: in the state that the vCPU was in, and under the"
    " decision that was made next about an exit of it."
)


def coverage_page(coverage: Coverage, seeds: str) -> str:
    """Put the page together. ``seeds`` says which runs were made."""
    cells = Cells(coverage)
    title = f"{coverage.plan.get('name', '')}: what {coverage.runs:,} runs have reached"
    body = [*_head(cells, title, seeds), _key(), _matrix(coverage, cells), *_foot(cells)]
    return page(title, body="\n".join(body), styles=("page.css", "coverage.css"))


def _head(cells: Cells, title: str, seeds: str) -> Iterator[str]:
    reached, able = totals(cells)
    said = tag("span", f"seeds {seeds}") + tag("span", f"{reached} of {able} cells reached")
    yield tag("header", inside=tag("h1", title) + tag("p", class_="facts", inside=said) + tag("p", _COUNTED))


def _key() -> str:
    shades = "".join(_cell("i", count) for count in (1, 12, 300))
    never, cannot = _cell("i", 0), tag("i", class_="cell cannot")
    texts = f"{shades} so often {never} never reached {cannot} cannot be reached: point at it for the reason"
    return tag("p", class_="key", inside=texts)


def _cell(element: str, count: int, more: str = "", said: str = "") -> str:
    shade = f"s{min(_SHADES, 1 + int(log2(count)))}" if count else "never"
    short = str(count) if count < 1000 else f"{count // 1000}k"
    return tag(element, short, class_=f"cell {shade}{more}", title=said)


def _matrix(coverage: Coverage, cells: Cells) -> str:
    wide = len(cells.decisions)
    states = [
        tag("th", state, colspan=wide, scope="colgroup", class_="state", title=STATES[state]) for state in cells.states
    ]
    decisions = [
        tag("th", scope="col", class_=f"decision{'' if nr else ' first'}", inside=tag("span", decision))
        for _ in cells.states
        for nr, decision in enumerate(cells.decisions)
    ]
    corner = [tag("th", text, rowspan=2, scope="col") for text in ("fault point", "fired")]
    head = tag("tr", inside="".join([*corner, *states])) + "\n" + tag("tr", inside="".join(decisions))
    rows = [
        tag(
            "tr",
            inside=tag("th", point, scope="row")
            + tag("td", f"{coverage.hits[point]:,}", class_="fired")
            + "".join(_row(cells, point)),
        )
        for point in cells.points
    ]
    table = tag("table", inside=tag("thead", inside=head) + "\n" + tag("tbody", inside="\n".join(rows)))
    return tag("main", inside=table, tabindex="0", aria_label="Matrix")


def _row(cells: Cells, point: str) -> Iterator[str]:
    whole = cells.why_not(point)
    if whole:
        yield tag("td", whole, colspan=len(cells.states) * len(cells.decisions), class_="cannot whole")
        return
    for state in cells.states:
        reason = cells.why_not(point, state)
        if reason:
            hidden = tag("span", reason, class_="visually-hidden")
            said = f"{point}, {state}: {reason}"
            yield tag("td", colspan=len(cells.decisions), class_="cannot first", title=said, inside=hidden)
            continue
        for nr, decision in enumerate(cells.decisions):
            count = cells.count(point, state, decision)
            yield _cell("td", count, "" if nr else " first", f"{point}, {state}, {decision}: {count:,}")


def _foot(cells: Cells) -> Iterator[str]:
    unasked = f"No policy of the plan decides: {', '.join(cells.unasked) or 'nothing is left out'}."
    states = "".join(tag("dt", state) + tag("dd", text) for state, text in STATES.items())
    yield tag("footer", inside=tag("p", unasked) + tag("dl", inside=states))
