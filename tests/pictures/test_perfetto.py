"""The trace for other viewers: held against the Trace Event Format, event by event.

Source: "Trace Event Format" of the Chromium project: the phases, and which fields each has.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import groupby
from typing import Any

import pytest

from fault_lab.pictures.perfetto import perfetto_trace
from fault_lab.pictures.recording import read_recording
from tests.pictures.runs import recorded, recording, violated

#: Fields beside ph, pid and name, by phase.
FIELDS = {
    "M": {"tid", "args"},
    "X": {"tid", "ts", "dur", "cat", "args"},
    "b": {"tid", "ts", "cat", "id", "args"},
    "e": {"tid", "ts", "cat", "id"},
    "i": {"tid", "ts", "s", "cat", "args"},
    "s": {"tid", "ts", "cat", "id"},
    "f": {"tid", "ts", "cat", "id", "bp"},
    "C": {"ts", "args"},
}


def events(text: str) -> list[dict[str, Any]]:
    """The events of a run's trace."""
    trace = json.loads(perfetto_trace(read_recording(text)))
    assert trace["displayTimeUnit"] in {"ms", "ns"}
    found: list[dict[str, Any]] = trace["traceEvents"]
    return found


@pytest.mark.parametrize(
    "text", [recorded("first"), recorded("storm", 3), violated()], ids=["first", "storm", "violated"]
)
def test_every_event_is_as_the_format_has_it(text: str) -> None:
    """Known phases with their fields, numbers where numbers belong, every track named, every begin with its end."""
    found = events(text)
    named = {(each["pid"], each["tid"]) for each in found if each["name"] == "thread_name"}
    processes = {each["pid"] for each in found if each["name"] == "process_name"}
    for each in found:
        assert set(each) == FIELDS[each["ph"]] | {"ph", "pid", "name"}
        assert isinstance(each["pid"], int)
        assert isinstance(each["name"], str)
        assert each["pid"] in processes
        if each["ph"] == "M":
            continue
        assert isinstance(each["ts"], int | float)
        assert each["ts"] >= 0
        assert each.get("dur", 0) >= 0
        assert each["ph"] != "i" or each["s"] in {"g", "p", "t"}
        assert each["ph"] == "C" or each.get("s") == "g" or (each["pid"], each["tid"]) in named
    for begin, end in (("b", "e"), ("s", "f")):
        begins = Counter((each["cat"], each["id"], each["name"]) for each in found if each["ph"] == begin)
        ends = Counter((each["cat"], each["id"], each["name"]) for each in found if each["ph"] == end)
        assert begins == ends


@pytest.mark.parametrize("text", [recorded("first"), recorded("storm", 3)], ids=["first", "storm"])
def test_slices_of_a_thread_nest_and_flows_have_one(text: str) -> None:
    """Complete events of a thread lie one in another or apart; a flow begins and ends inside of one."""
    found = [each for each in events(text) if each["ph"] in "Xsf"]
    tracks = groupby(
        sorted(found, key=lambda each: (each["pid"], each["tid"])), lambda each: (each["pid"], each["tid"])
    )
    for _, group in tracks:
        together = list(group)
        spans = sorted((round(each["ts"] * 1000), -round(each["dur"] * 1000)) for each in together if each["ph"] == "X")
        open_: list[int] = []
        for begin, length in spans:
            while open_ and open_[-1] <= begin:
                open_.pop()
            assert not open_ or begin - length <= open_[-1]
            open_.append(begin - length)
        starts = {round(each["ts"] * 1000) for each in together if each["ph"] == "X"}
        assert {round(each["ts"] * 1000) for each in together if each["ph"] in "sf"} <= starts


def test_what_is_in_it() -> None:
    """Processes are nodes, threads vCPUs, slices calls, flows messages, instants what went wrong, counters sizes."""
    found = events(recorded("first"))
    names = [each["args"]["name"] for each in found if each["name"] in {"process_name", "thread_name"}]
    assert {"controller ctl", "host host", "guest a", "vCPU a/0"} <= set(names)
    slices = [each["name"] for each in found if each["ph"] == "X" and each["cat"] == "call"]
    assert slices == ["SubmitEvents", "WaitOutcome", "SubmitEvents"]
    assert [each["args"]["bytes"] for each in found if each["ph"] == "C"] == [2560, 2560, 10752, 10752]
    (fault,) = [each for each in found if each["ph"] == "i" and each["cat"] == "fault"]
    assert fault["name"] == "no-memory: ENOMEM"
    assert fault["ts"] == 3099.984
    messages = [record for record in recording("first").records if record.type == "message"]
    assert sum(each["ph"] == "s" for each in found) == len(messages)
