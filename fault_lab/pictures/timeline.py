"""What the page of a timeline draws: lanes, marks, messages, bands and strips, as plain values for JSON.

Positions are pixels of a scale on which every record has room: the pause between two of them grows with the logarithm
of the time between. The page can also draw by time alone, for which everything has its nanoseconds beside it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from math import log2
from typing import Any, Final

from fault_lab.pictures.calls import DOWN, ENDS, calls
from fault_lab.pictures.fault_windows import fault_windows
from fault_lab.pictures.lanes import LETTERS, Lanes
from fault_lab.pictures.marks import label, mark, message_kind, title
from fault_lab.pictures.recording import Record, Recording
from fault_lab.pictures.window import Window
from fault_lab.pictures.words import sentence, short
from fpu_core.xfeature import format_mask

#: Pixels between two records: at one moment in one lane, in different lanes, per doubling of the time, at most.
_SAME_LANE: Final = 13
_OTHER_LANE: Final = 5
_DOUBLING: Final = 6
_MOST: Final = 110
#: Time up to which two records count as one moment.
_MOMENT_NS: Final = 20_000
_MARGIN: Final = 24
#: Room for what stands beside the last record.
_LAST_LABEL: Final = 200


class Scale:
    """Where a record stands, and where a moment between records does."""

    def __init__(self, records: Sequence[Record], lanes: Lanes) -> None:
        self._first = records[0].n
        self._times: list[int] = []
        self._xs: list[float] = []
        x = float(_MARGIN)
        last: Record | None = None
        for record in records:
            if last is not None:
                apart = max(0, record.t - last.t)
                same = lanes.of(record) == lanes.of(last) or record.type in {"violation", "phase"}
                x += (_SAME_LANE if same else _OTHER_LANE) + min(_MOST, _DOUBLING * log2(1 + apart / _MOMENT_NS))
            self._times.append(record.t)
            self._xs.append(round(x, 1))
            last = record
        self.width = round(x + _LAST_LABEL)

    def of(self, record: Record) -> float:
        """Where a record stands."""
        return self._xs[record.n - self._first]

    def at(self, t: int) -> float:
        """Where a moment is: on the last record of it, or between two."""
        nr = bisect_right(self._times, t)
        if nr == 0:
            return 0.0
        if nr == len(self._times) or self._times[nr - 1] == t:
            return self._xs[nr - 1]
        t0, t1, x0, x1 = self._times[nr - 1], self._times[nr], self._xs[nr - 1], self._xs[nr]
        return round(x0 + (x1 - x0) * (t - t0) / (t1 - t0), 1)


class Timeline:
    """The values of one page."""

    def __init__(self, recording: Recording, window: Window) -> None:
        self._recording = recording
        self._window = window
        self.lanes = Lanes(recording)
        self.shown = recording.records[window.first : window.last + 1]
        self.scale = Scale(self.shown, self.lanes)
        self._end = self.shown[-1].t

    def values(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        strips = list(self._strips())
        return {
            "title": title(self._recording),
            "window": self._window.text,
            "shownAll": self._window.last - self._window.first + 1 == self._window.total,
            "violation": self._recording.violation.n if self._recording.violation is not None else None,
            "width": self.scale.width,
            "lanes": [
                {"name": lane.name, "label": lane.label, "kind": lane.kind, "letter": LETTERS[lane.kind]}
                for lane in self.lanes.all
            ],
            "records": [self._record(record) for record in self.shown],
            "arrows": list(self._arrows()),
            "bands": list(self._bands()),
            "calls": list(self._calls()),
            "phases": list(self._phases()),
            "windows": list(self._windows()),
            "strips": strips,
            "mostBytes": max((step["bytes"] for strip in strips for step in strip["steps"]), default=0),
        }

    def _record(self, record: Record) -> dict[str, Any]:
        lane = self.lanes.of(record)
        return {
            "n": record.n,
            "t": record.t,
            "x": self.scale.of(record),
            "c": record.cause,
            "k": record.type,
            "l": lane,
            "m": mark(record),
            "lb": label(record),
            "s": sentence(record),
            "f": {name: value for name, value in record.fields.items() if value is not None},
        }

    def _arrows(self) -> Iterator[dict[str, Any]]:
        """Messages: from where they were sent to where they arrived, or to where they were lost."""
        for record in self.shown:
            if record.type != "message":
                continue
            source, to = self.lanes.ends(record)
            sent = record.number("sent")
            lost = record.text("lost")
            yield {
                "n": record.n,
                "from": self.lanes.index(source),
                "to": self.lanes.index(to),
                "x0": self._sent_x(record, sent),
                "t0": sent,
                "lost": lost,
                "kind": message_kind(record.text("what")),
            }

    def _sent_x(self, record: Record, sent: int) -> float:
        cause = self._recording.records[record.cause] if record.cause >= 0 else None
        if cause is not None and cause.n >= self._window.first and cause.t == sent:
            return self.scale.of(cause)
        return min(self.scale.at(sent), self.scale.of(record))

    # -- what lasts ----------------------------------------------------------------------------------------------------

    def _band(self, lane: str, kind: str, text: str, begin: Record, end: tuple[int, float] | None) -> dict[str, Any]:
        t1, x1 = end if end is not None else (self._end, self.scale.at(self._end))
        inside = begin.n >= self._window.first
        return {
            "l": self.lanes.index(lane),
            "kind": kind,
            "text": text,
            "n": begin.n,
            "t0": begin.t,
            "t1": t1,
            "x0": self.scale.of(begin) if inside else 0.0,
            "x1": x1,
        }

    def _until(self, record: Record) -> tuple[int, float]:
        return record.t, self.scale.of(record) if record.n >= self._window.first else 0.0

    def _bands(self) -> Iterator[dict[str, Any]]:
        """Nodes that are down or stand still, links that hold, and what state each vCPU is in."""
        open_: dict[tuple[str, str], tuple[str, str, Record]] = {}
        for record in self._recording.records[: self._window.last + 1]:
            for key, begins in _lasting(record):
                was = open_.pop(key, None)
                if was is not None:
                    yield from self._ended(key[0], was, self._until(record))
                if begins is not None:
                    open_[key] = (*begins, record)
            if record.type == "node" and record.text("state") == "paused":
                until = record.number("until")
                yield from self._ended(
                    record.text("node"), ("paused", "stands still", record), (until, self.scale.at(until))
                )
        for key, was in open_.items():
            yield from self._ended(key[0], was, None)

    def _ended(
        self, lane: str, was: tuple[str, str, Record], end: tuple[int, float] | None
    ) -> Iterator[dict[str, Any]]:
        kind, text, begin = was
        band = self._band(lane, kind, text, begin, end)
        if band["x1"] > 0 and band["l"] >= 0:
            yield band

    def _calls(self) -> Iterator[dict[str, Any]]:
        """Calls of vCPUs as bars: from where they were made to where their end was heard."""
        for begin, end in calls(self._recording.records[: self._window.last + 1]):
            if end is None or end.n >= self._window.first:
                came_to = end.type if end is not None and end.type in ENDS else "open"
                until = self._until(end) if end is not None else None
                yield self._band(begin.text("process"), came_to, begin.text("f"), begin, until)

    def _phases(self) -> Iterator[dict[str, Any]]:
        phases = [each for each in self._recording.records[: self._window.last + 1] if each.type == "phase"]
        for record, after in zip(phases, [*phases[1:], None], strict=True):
            end = self._until(after) if after is not None else None
            band = self._band("", "phase", record.text("phase"), record, end)
            if band["x1"] > 0:
                yield band

    def _windows(self) -> Iterator[dict[str, Any]]:
        begin = self.shown[0].t
        for name, opens, closes in fault_windows(self._recording):
            t0, t1 = max(opens, begin), min(closes, self._end)
            if t0 < t1:
                yield {"text": name, "t0": t0, "t1": t1, "x0": self.scale.at(t0), "x1": self.scale.at(t1)}

    def _strips(self) -> Iterator[dict[str, Any]]:
        """XFD and the size of each vCPU's container, at every change."""
        steps: dict[str, list[dict[str, Any]]] = {}
        for record in self._recording.records[: self._window.last + 1]:
            if record.type == "vcpu":
                inside = record.n >= self._window.first
                xfd = record.number("xfd")
                step = {
                    "n": record.n,
                    "t": record.t,
                    "x": self.scale.of(record) if inside else 0.0,
                    "bytes": record.number("bytes"),
                    "xfd": format_mask(xfd),
                    "armed": xfd != 0,
                }
                so_far = steps.setdefault(record.text("vcpu"), [])
                if so_far and not inside:
                    so_far.clear()
                so_far.append(step)
        for vcpu, found in steps.items():
            yield {"l": self.lanes.index(vcpu), "steps": found}


#: What a record of a node begins: key, then kind and text of the band, or None where something ends.
_Begins = tuple[tuple[str, str], tuple[str, str] | None]


def _lasting(record: Record) -> Iterator[_Begins]:
    text = record.text
    match record.type:
        case "node" if text("state") in DOWN:
            yield (text("node"), "down"), ("down", f"down: {text('state')}")
        case "node" if text("state") == "started":
            yield (text("node"), "down"), None
        case "vcpu":
            state = text("state")
            yield (text("vcpu"), "state"), None if state in {"outside", "gone"} else (state, state)
        case "link":
            source, _, to = text("link").partition("->")
            held = text("state") == "held"
            yield (source, text("link")), ("held", f"to {short(to)} held: {text('fault')}") if held else None
        case _:
            pass
