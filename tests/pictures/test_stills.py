"""Still pictures and values of pages: whole ones first, then what must hold for every run."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from fault_lab.pictures.calls import calls
from fault_lab.pictures.fault_windows import fault_windows
from fault_lab.pictures.html import embedded
from fault_lab.pictures.lamport import lamport_svg
from fault_lab.pictures.lanes import Lanes
from fault_lab.pictures.perfetto import perfetto_trace
from fault_lab.pictures.recording import Recording, read_recording
from fault_lab.pictures.timeline import Timeline
from fault_lab.pictures.timeline_page import timeline_page
from fault_lab.pictures.window import choose
from fault_lab.pictures.words import action_words, ms, sentence
from tests.pictures.runs import HOSTILE, hostile, recorded, recording, violated

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs" / "pictures"


def test_the_founding_failure_in_sentences() -> None:
    """What stands on the right of a still picture, from the failed allocation to the growth."""
    said = [f"{ms(record.t)} {sentence(record)}" for record in recording("first").records[31:46]]
    assert said == [
        "2.986 a/0 calls SubmitEvents(epoch 2: 1 Xsetbv value=0x602e7)",
        "3.099 SubmitEvents request a -> host, 0.113 ms on its way",
        "3.099 fault no-memory at fpstate.realloc.alloc of a/0, hit 1: ENOMEM",
        "3.099 a/0 is parked, fpstate 2,560 B, XFD=0 XCR0=0x1",
        "3.099 exit a/0/1 generation 1 open (NO_MEMORY)",
        "3.894 SubmitEvents reply host -> a, 0.127 ms on its way",
        "3.894 SubmitEvents of a/0: ok pending on vms/a/vcpus/0/exits/1 generation 1",
        "3.894 a/0 calls WaitOutcome(epoch 2: 1)",
        "3.923 WatchExits message host -> ctl, 0.156 ms on its way",
        "3.923 ctl decides RETRY for exit a/0/1 generation 1",
        "3.923 ctl calls ResolveExit(vms/a/vcpus/0/exits/1 generation 1 epoch 1: RETRY)",
        "4.000 WaitOutcome request a -> host, 0.106 ms on its way",
        "4.031 ResolveExit request ctl -> host, 0.108 ms on its way",
        "4.031 a/0 is entered, fpstate 10,752 B, XFD=0 XCR0=0x602e7",
        "4.031 exit a/0/1 generation 1 resolved (NO_MEMORY), RETRY by ctl",
    ]


def test_the_picture_in_the_docs() -> None:
    """docs/pictures/first.svg is what the command draws today."""
    assert lamport_svg(recording("first")) == (DOCS / "first.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FailErrno(errno=12)", "ENOMEM"),
        ("FailErrno(errno=99)", "errno 99"),
        ("Delay(min_ns=1500000, max_ns=1500000)", "delay 1.500 ms"),
        ("Kill(restart_ns=300000000)", "kill 300 ms"),
        ("Hold(for_ns=0)", "hold"),
        ("Reorder(depth=3)", "reorder 3x"),
        ("whatever", "whatever"),
    ],
)
def test_what_a_fault_did(text: str, words: str) -> None:
    """An action in a word or two."""
    assert action_words(text) == words


def test_lanes_stand_in_the_order_of_the_mail() -> None:
    """Controllers, hosts, guests with their vCPUs; ten comes behind nine. A node that no plan names has its lane."""
    assert [lane.name for lane in Lanes(recording("storm", 3)).all] == [
        *("ctl", "own", "host"),
        *("vms/a", "vms/a/vcpus/0", "vms/a/vcpus/1", "vms/b", "vms/b/vcpus/0"),
    ]
    head = {"live": True}
    records = [
        {"n": 0, "t": 0, "cause": -1, "type": "vcpu", "node": "h", "vcpu": "vms/x/vcpus/10", "state": "entered"},
        {"n": 1, "t": 0, "cause": 0, "type": "invoke", "process": "vms/x/vcpus/9", "f": "SubmitEvents", "call": 1},
        {"n": 2, "t": 0, "cause": 1, "type": "decision", "node": "c", "exit": "vms/x/vcpus/9/exits/1"},
    ]
    found = read_recording("\n".join(json.dumps(each) for each in (head, *records)))
    assert [lane.label for lane in Lanes(found).all] == ["c", "h", "x", "x/9", "x/10"]


def test_when_a_fault_could_fire() -> None:
    """The windows of the plan, within the phases, of those that fired: a partition one way, then a whole one."""
    run = recording("cut-off")
    s = 1_000_000_000
    assert list(fault_windows(run)) == [("deaf", 2 * s, 8 * s), ("cut", 10 * s, 20 * s)]
    quiet = [record for record in run.records if record.text("fault") != "deaf"]
    assert [name for name, _, _ in fault_windows(replace(run, records=quiet))] == ["cut"]
    assert list(fault_windows(recording("storm", 3))) == []  # its one window never closes


@pytest.mark.parametrize("name", ["storm", "cut-off", "killed-and-restarted"])
def test_every_record_has_its_place(name: str) -> None:
    """Positions rise with the records; every message that arrived has an arrow between two lanes; bands end later."""
    run = recording(name, 3)
    values = Timeline(run, choose(run, None, None, 10_000)).values()
    xs = [record["x"] for record in values["records"]]
    assert xs == sorted(xs)
    assert all(before < after for before, after in pairwise(xs))
    messages = [record for record in run.records if record.type == "message"]
    assert [arrow["n"] for arrow in values["arrows"]] == [record.n for record in messages]
    lanes = range(len(values["lanes"]))
    by_n = {record["n"]: record["x"] for record in values["records"]}
    for arrow in values["arrows"]:
        assert arrow["from"] in lanes
        assert arrow["to"] in lanes
        assert arrow["x0"] <= by_n[arrow["n"]]
    assert all(band["x0"] <= band["x1"] and band["t0"] <= band["t1"] for band in values["bands"])
    nodes = [record.text("state") for record in run.records if record.type == "node"]
    downs = sum(state in {"killed", "ended", "fenced", "refused"} for state in nodes)
    assert sum(band["kind"] == "down" for band in values["bands"]) == downs


@pytest.mark.parametrize("text", [recorded("storm", 3), violated()], ids=["storm", "violated"])
def test_a_vcpu_has_one_call_at_a_time(text: str) -> None:
    """A call whose process has ended is over with it: its bar does not lie under those of the next process."""
    last: dict[str, int] = {}
    run = read_recording(text)
    for begin, end in sorted(calls(run.records), key=lambda pair: pair[0].n):
        process = begin.text("process")
        if "/vcpus/" in process:
            assert last.get(process, -1) < begin.n
            last[process] = end.n if end is not None else len(run.records)
    assert last


def test_a_part_of_a_run_knows_what_was_before() -> None:
    """A strip, a phase and a band that began earlier begin at the left edge."""
    run = recording("first")
    values = Timeline(run, choose(run, 36, 40, 100)).values()
    assert [band["text"] for band in values["bands"]] == ["parked"]
    assert values["bands"][0]["x0"] == 0.0
    (strip,) = values["strips"]
    assert [step["bytes"] for step in strip["steps"]] == [2560]
    assert [phase["text"] for phase in values["phases"]] == ["chaos"]


def test_where_a_fault_stands() -> None:
    """At its vCPU or node; of a link where it comes from; of a method at the host, or at the caller in a client."""
    call = {"process": "vms/a/vcpus/0", "f": "SubmitEvents", "call": 1}
    places = {
        ("fpstate.realloc.alloc", "vms/a/vcpus/0"): "vms/a/vcpus/0",
        ("node.run", "host"): "host",
        ("link.message", "ctl->host"): "ctl",
        ("rpc.server.reply", "/fpstate.v1.GuestSessionService/SubmitEvents"): "host",
        ("rpc.client.send", "/fpstate.v1.GuestSessionService/SubmitEvents"): "vms/a/vcpus/0",
    }
    faults: list[dict[str, Any]] = [
        {"type": "fault", "cause": 1, "point": point, "entity": entity} for point, entity in places
    ]
    head = {"sim": 3, "plan": {"topology": {"hosts": [{"name": "host"}], "controllers": [{"name": "ctl"}]}}}
    records: list[dict[str, Any]] = [{"type": "phase", "phase": "chaos"}, {"type": "invoke", **call}, *faults]
    lines = [json.dumps({"cause": -1, **each, "n": n, "t": n}) for n, each in enumerate(records)]
    run = read_recording("\n".join([json.dumps(head), *lines]))
    assert [Lanes(run).place(record) for record in run.records[2:]] == list(places.values())


def pictures(run: Recording) -> list[str]:
    """Every picture of a run."""
    return [timeline_page(run), lamport_svg(run), perfetto_trace(run)]


@pytest.mark.parametrize("text", [recorded("first"), violated(), hostile()], ids=["first", "violated", "hostile"])
def test_the_same_history_gives_the_same_bytes(text: str) -> None:
    """Nothing of the moment, of the process or of an order of sets is in a picture."""
    assert pictures(read_recording(text)) == pictures(read_recording(text))


def test_hostile_texts_stay_texts() -> None:
    """No text of a file ends an element: one script of data, one of code, and XML that is whole."""
    page, svg, trace = pictures(read_recording(hostile()))
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert "<img" not in svg
    assert any("onerror" in each for each in ET.fromstring(svg).itertext())  # noqa: S314 -- made here
    assert any(HOSTILE in event["name"] for event in json.loads(trace)["traceEvents"])
    assert json.loads(embedded({"x": HOSTILE})) == {"x": HOSTILE}
    assert not set("<>&\u2028") & set(embedded({"x": HOSTILE}))


def test_half_a_surrogate_pair_is_drawn() -> None:
    """JSON may say what no file can hold."""
    text = recorded("first").replace('"name": "first"', '"name": "\\ud800"')
    for picture in pictures(read_recording(text)):
        picture.encode("utf-8")
