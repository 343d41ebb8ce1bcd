"""A run for ui.perfetto.dev, and for whatever else reads the Trace Event Format in its JSON form.

    process     a node                       slice      a call of a vCPU; other calls overlap, and are async slices
    thread      a vCPU; the node itself      async      what state a vCPU is in, as long as it is
    flow        a message                    instant    a fault, a decision, an exit, a node's life, a violation
    counter     bytes of a container's image

Times are microseconds with three decimals, exact to the nanosecond. A flow binds to the slice around its end, so each
message has a slice of a nanosecond where it was sent and where it arrived.

Source: the Trace Event Format document of the Chromium project, and Perfetto's "External trace formats".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from fault_lab.pictures.calls import ENDS, calls
from fault_lab.pictures.lanes import Lanes
from fault_lab.pictures.marks import label, title
from fault_lab.pictures.recording import Record, Recording
from fault_lab.pictures.words import sentence, short
from fpu_core.xfeature import format_mask

_NODE_THREAD: Final = 1
_SENT: Final = 2
_ARRIVED: Final = 3
#: Threads of vCPUs come behind those that every node has.
_FIRST_VCPU: Final = 10
_INSTANTS: Final = frozenset({"fault", "decision", "exit", "node", "guest", "link", "phase", "violation"})
_SHORTEST_US: Final = 0.001

Event = dict[str, Any]


def perfetto_trace(recording: Recording) -> str:
    """The whole run as JSON text; the same run gives the same bytes."""
    trace = _Trace(recording)
    values = {"displayTimeUnit": "ms", "otherData": title(recording), "traceEvents": list(trace.events())}
    return json.dumps(values, separators=(",", ":")) + "\n"


def _us(ns: int) -> float:
    return ns / 1000


class _Trace:
    """The events of one run."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._lanes = Lanes(recording)
        self._ends_ns = recording.records[-1].t
        #: Process and thread of every lane.
        self._tracks: dict[str, tuple[int, int]] = {}
        for lane in self._lanes.all:
            if lane.kind != "vcpu":
                self._tracks[lane.name] = len(self._tracks) + 1, _NODE_THREAD
        for lane in self._lanes.all:
            if lane.kind == "vcpu":
                vm, _, index = lane.name.partition("/vcpus/")
                self._tracks[lane.name] = self._tracks[vm][0], _FIRST_VCPU + int(index)

    def events(self) -> Iterator[Event]:
        """Names first, then everything in the order of the records."""
        yield from self._names()
        yield from self._calls()
        yield from self._states()
        for record in self._recording.records:
            if record.type == "message":
                yield from self._message(record)
            elif record.type in _INSTANTS:
                yield self._instant(record)

    def _names(self) -> Iterator[Event]:
        yield self._meta("process_name", 0, 0, name="the run")
        for lane in self._lanes.all:
            pid, tid = self._tracks[lane.name]
            if lane.kind == "vcpu":
                yield self._meta("thread_name", pid, tid, name=f"vCPU {lane.label}")
                continue
            yield self._meta("process_name", pid, 0, name=f"{lane.kind} {lane.label}")
            yield self._meta("process_sort_index", pid, 0, sort_index=pid)
            for thread, name in ((_NODE_THREAD, lane.label), (_SENT, "messages sent"), (_ARRIVED, "messages arrived")):
                yield self._meta("thread_name", pid, thread, name=name)

    @staticmethod
    def _meta(kind: str, pid: int, tid: int, **args: str | int) -> Event:
        return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": args}

    def _track(self, name: str) -> dict[str, int]:
        pid, tid = self._tracks.get(name, (0, 0))
        return {"pid": pid, "tid": tid}

    # -- what lasts ----------------------------------------------------------------------------------------------------

    def _calls(self) -> Iterator[Event]:
        for begin, end in calls(self._recording.records):
            process = begin.text("process")
            end_ns = end.t if end is not None else self._ends_ns
            came_to = end.type if end is not None and end.type in ENDS else "open"
            reply = end.text("value") if end is not None else ""
            args = {"request": begin.text("value"), "came to": came_to, "reply": reply, "record": begin.n}
            event = {"name": begin.text("f"), "cat": "call", **self._track(process), "ts": _us(begin.t)}
            if "/vcpus/" in process:
                yield {"ph": "X", **event, "dur": _us(end_ns - begin.t), "args": args}
            else:
                yield {"ph": "b", **event, "id": begin.number("call"), "args": args}
                yield {"ph": "e", **event, "ts": _us(end_ns), "id": begin.number("call")}

    def _states(self) -> Iterator[Event]:
        """The states of vCPUs, and the sizes of their containers."""
        states: dict[str, Record] = {}
        for record in self._recording.records:
            if record.type != "vcpu":
                continue
            vcpu = record.text("vcpu")
            before = states.get(vcpu)
            if before is None or before.text("state") != record.text("state"):
                if before is not None:
                    yield self._state("e", vcpu, before, record.t)
                yield self._state("b", vcpu, record, record.t)
                states[vcpu] = record
            counter = {"name": f"fpstate {short(vcpu)}", "args": {"bytes": record.number("bytes")}}
            yield {"ph": "C", **counter, "pid": self._track(vcpu)["pid"], "ts": _us(record.t)}
        for vcpu, last in states.items():
            yield self._state("e", vcpu, last, self._ends_ns)

    def _state(self, phase: str, vcpu: str, record: Record, at_ns: int) -> Event:
        masks = {"XFD": format_mask(record.number("xfd")), "XCR0": f"{record.number('xcr0'):#x}"}
        event = {"ph": phase, "name": record.text("state"), "cat": f"state {short(vcpu)}", **self._track(vcpu)}
        return {**event, "id": self._lanes.index(vcpu), "ts": _us(at_ns), **({"args": masks} if phase == "b" else {})}

    # -- moments -------------------------------------------------------------------------------------------------------

    def _message(self, record: Record) -> Iterator[Event]:
        source, to = self._lanes.nodes(record)
        said = {"name": record.text("what"), "cat": "message"}
        sent = {**said, "pid": self._track(source)["pid"], "tid": _SENT, "ts": _us(record.number("sent"))}
        lost = record.text("lost")
        args = {"record": record.n, "call": record.number("call"), **({"lost": lost} if lost else {})}
        yield {"ph": "X", **sent, "dur": _SHORTEST_US, "args": args}
        if lost:
            return
        arrived = {**said, "pid": self._track(to)["pid"], "tid": _ARRIVED, "ts": _us(record.t)}
        yield {"ph": "X", **arrived, "dur": _SHORTEST_US, "args": args}
        yield {"ph": "s", **sent, "id": record.n}
        yield {"ph": "f", "bp": "e", **arrived, "id": record.n}

    def _instant(self, record: Record) -> Event:
        place = self._lanes.place(record)
        args = {**record.fields, "record": record.n, "cause": record.cause, "said": sentence(record)}
        name = label(record) or sentence(record)
        scope = "t" if place in self._tracks else "g"
        event = {"ph": "i", "name": name, "cat": record.type, **self._track(place), "ts": _us(record.t)}
        return {**event, "s": scope, "args": args}
