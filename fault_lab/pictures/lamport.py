"""A still picture of a run, as Lamport drew them: time runs down, a line for each lane, an arrow for each message.

Every record has a row, with its time on the left and its sentence on the right, so that the picture needs no other
page to be read. It follows the reader's preference for light or dark where the viewer does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape

from fault_lab.pictures.lanes import LETTERS
from fault_lab.pictures.marks import mark
from fault_lab.pictures.recording import Record, Recording
from fault_lab.pictures.timeline import Timeline
from fault_lab.pictures.window import STILL_RECORDS, choose
from fault_lab.pictures.words import ms, sentence

_ROW: Final = 17
_TOP: Final = 66
_TIME: Final = 96
_LANE: Final = 92
_CHARACTER: Final = 6.7
_SENTENCE: Final = 110

_STYLE: Final = """
svg{--paper:#fff;--ink:#1d2126;--soft:#5c646d;--rule:#d4d7da;--blue:#0072b2;--sky:#3a9bd4;--green:#007a5a;--orange:#b87400;--red:#c24a00;--purple:#a8558a}
@media (prefers-color-scheme:dark){svg{--paper:#14171a;--ink:#e4e6e8;--soft:#a2aab2;--rule:#343a40;--blue:#56b4e9;--sky:#8fcdf0;--green:#2fc79a;--orange:#f0b040;--red:#ff8a4a;--purple:#e2a3c8}}
text{font:11px ui-monospace,"DejaVu Sans Mono",monospace;fill:var(--ink)}.soft{fill:var(--soft)}.name{font-weight:700;text-anchor:middle}
.line{stroke:var(--soft)}.rule{stroke:var(--rule)}.down{stroke:var(--red);stroke-width:7;stroke-dasharray:2 3;opacity:.5}.paused{stroke:var(--purple);stroke-width:7;stroke-dasharray:1 2;opacity:.5}
.parked{stroke:var(--orange);stroke-width:7;stroke-dasharray:4 2;opacity:.55}.entered{stroke:var(--green);stroke-width:5;opacity:.35}
.arrow{fill:none;stroke-width:1.3}.request{stroke:var(--blue)}.reply{stroke:var(--sky);stroke-dasharray:6 2}.stream{stroke:var(--purple);stroke-dasharray:2 2}.broken,.lost{stroke:var(--red)}
.mark{fill:var(--paper);stroke:var(--ink);stroke-width:1.3}.fault{fill:var(--orange)}.exit,.violation{fill:var(--red)}.settled,.decision,.up{fill:var(--green)}.m-down{fill:var(--red)}
.fault-row{font-weight:700;fill:var(--orange)}.violation-row{font-weight:700;fill:var(--red)}.exit-row,.decision-row{font-weight:700}
"""  # noqa: E501 -- style sheets do not wrap

#: A shape for each mark; what is not here is a small circle.
_SHAPES: Final = {
    "fault": "M1,-8 L-5,1 L-1,1 L-2,8 L5,-2 L1,-2 Z",
    "exit": "M-5,-5 h10 v10 h-10 Z",
    "settled": "M-5,-5 h10 v10 h-10 Z",
    "decision": "M0,-7 L7,0 L0,7 L-7,0 Z",
    "up": "M0,-6 L6,5 L-6,5 Z",
    "down": "M0,6 L6,-5 L-6,-5 Z",
    "invoke": "M-4,-4 L4,0 L-4,4 Z",
    "violation": "M-1,-9 L11,-4 L-1,1 Z",
}


def lamport_svg(recording: Recording, first: int | None = None, last: int | None = None) -> str:
    """Draw records ``first`` to ``last`` as SVG. Raises ``PictureError`` where there are no such records."""
    window = choose(recording, first, last, STILL_RECORDS)
    return "\n".join(_Still(Timeline(recording, window), window.text).lines()) + "\n"


class _Still:
    """One picture. Rows are numbered as the records are; a moment is the row of the last record before it."""

    def __init__(self, timeline: Timeline, said: str) -> None:
        self._timeline = timeline
        self._values = timeline.values()
        self._said = said
        self._lanes = timeline.lanes
        self._shown = timeline.shown
        self._text_x = _TIME + _LANE * len(self._lanes.all) + 24
        self._height = _TOP + _ROW * len(self._shown) + 16
        longest = max(min(len(sentence(each)), _SENTENCE) for each in self._shown)
        self._width = round(self._text_x + longest * _CHARACTER + 24)

    def lines(self) -> Iterator[str]:
        """The picture, line by line."""
        title = self._values["title"]
        said = f"{title['name']}, {title['kind']}, seed {title['seed']}, verdict {title['verdict']}; {self._said}"
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self._width}" height="{self._height}"'
            f' viewBox="0 0 {self._width} {self._height}" role="img">'
        )
        yield f"<title>{_text(said)}</title>\n<style>{_STYLE}</style>"
        for kind, colour in (("request", "blue"), ("reply", "sky"), ("stream", "purple"), ("broken", "red")):
            yield (
                f'<marker id="to-{kind}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7"'
                f' markerUnits="userSpaceOnUse" orient="auto">'
                f'<path d="M0,0 L8,4 L0,8 Z" style="fill:var(--{colour})"/></marker>'
            )
        yield f'<rect width="{self._width}" height="{self._height}" style="fill:var(--paper)"/>'
        yield f'<text x="12" y="20">{_text(said)}</text>'
        yield f'<text class="soft" x="12" y="{_TOP - 18}">virtual ms</text>'
        yield from self._lane_lines()
        yield from self._bands()
        yield from self._arrows()
        for record in self._shown:
            yield from self._row(record)
        yield "</svg>"

    def _x(self, lane: int) -> float:
        return _TIME + _LANE * (lane + 0.5)

    def _y(self, n: int) -> float:
        return _TOP + _ROW * (n - self._shown[0].n + 0.5)

    def _y_at(self, t: int) -> float:
        """Where a moment is: at the last record that is not later."""
        before = [record.n for record in self._shown if record.t <= t]
        return self._y(before[-1]) if before else _TOP - 6

    def _lane_lines(self) -> Iterator[str]:
        for nr, lane in enumerate(self._lanes.all):
            x = self._x(nr)
            yield f'<text class="name" x="{x}" y="{_TOP - 18}">{LETTERS[lane.kind]} {_text(lane.label)}</text>'
            yield f'<path class="line" d="M{x},{_TOP - 10} V{self._height - 8}"/>'

    def _bands(self) -> Iterator[str]:
        for band in self._values["bands"]:
            if band["kind"] in {"down", "paused", "parked", "entered"}:
                y0 = self._y(band["n"]) if band["n"] >= self._shown[0].n else _TOP - 10
                x, y1 = self._x(band["l"]), max(y0, self._y_at(band["t1"]))
                yield f'<path class="{band["kind"]}" d="M{x},{y0} V{y1}"/>'

    def _arrows(self) -> Iterator[str]:
        for arrow in self._values["arrows"]:
            if arrow["from"] < 0 or arrow["to"] < 0:
                continue
            record = self._shown[arrow["n"] - self._shown[0].n]
            x0, x1, y1 = self._x(arrow["from"]), self._x(arrow["to"]), self._y(record.n)
            y0 = self._sent_y(record, arrow["t0"])
            lost = arrow["lost"] not in {"", "down"}
            if lost:
                x1 = (x0 + x1) / 2
            kind = "lost" if arrow["lost"] else arrow["kind"]
            head = "" if arrow["lost"] else f' marker-end="url(#to-{arrow["kind"]})"'
            yield f'<path class="arrow {kind}" d="M{x0},{y0} L{x1},{y1}"{head}/>'
            if arrow["lost"]:
                yield f'<path class="lost" d="M-5,-5 L5,5 M-5,5 L5,-5" transform="translate({x1},{y1})"/>'

    def _sent_y(self, record: Record, sent: int) -> float:
        cause = record.cause - self._shown[0].n
        if cause >= 0 and self._shown[cause].t == sent:
            return self._y(record.cause)
        return min(self._y_at(sent), self._y(record.n))

    def _row(self, record: Record) -> Iterator[str]:
        y = self._y(record.n)
        before = self._shown[record.n - self._shown[0].n - 1] if record.n > self._shown[0].n else None
        if before is None or before.t != record.t:
            yield f'<path class="rule" d="M{_TIME - 12},{y - _ROW / 2} H{self._text_x - 12}"/>'
            yield f'<text class="soft" x="{_TIME - 18}" y="{y + 4}" text-anchor="end">{ms(record.t)}</text>'
        lane = self._lanes.of(record)
        shape, kind = _SHAPES.get(mark(record)), mark(record)
        where = f'transform="translate({self._x(lane) if lane >= 0 else self._text_x - 16},{y})"'
        name = "m-down" if kind == "down" else kind
        if shape is not None:
            yield f'<path class="mark {name}" d="{shape}" {where}/>'
        elif kind not in {"arrived", "lost"}:
            yield f'<circle class="mark" r="3" {where}/>'
        said = sentence(record)
        cut = said if len(said) <= _SENTENCE else f"{said[: _SENTENCE - 1]}…"
        kind = record.type if record.type in {"fault", "violation", "exit", "decision"} else "plain"
        yield f'<text class="{kind}-row" x="{self._text_x}" y="{y + 4}">{record.n} {_text(cut)}</text>'


def _text(value: str) -> str:
    """Text for XML, which has no control characters at all, escaped or not."""
    return escape("".join(each if each.isprintable() else "\ufffd" for each in value))
