"""What is drawn: which files, and which of their records."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fault_lab.pictures.recording import PictureError, read_recording
from fault_lab.pictures.window import choose
from tests.pictures.runs import recorded, recording, violated


def test_a_history_of_other_rules_and_a_live_one_are_drawn() -> None:
    """A picture shows what was written down, whoever wrote it; a field that nobody knows is kept."""
    lines = [
        '{"live": true, "seed": 1}',
        '{"n": 0, "t": 5, "cause": -1, "type": "invoke", "process": "vms/a/vcpus/0", "f": "SubmitEvents", "call": 1}',
        '{"n": 1, "t": 9, "cause": 0, "type": "weather", "sky": "blue"}',
    ]
    read = read_recording("\n".join(lines))
    assert read.live
    assert [record.type for record in read.records] == ["invoke", "weather"]
    assert read.records[1].text("sky") == "blue"
    assert read.violation is None


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda _text: "", "line 1: not JSON"),
        (lambda _text: "[]", "line 1: expected an object"),
        (lambda _text: "{}", 'line 1: expected the head of a history, with "sim" or "live"'),
        (lambda text: text.splitlines()[0], "line 2: expected a record"),
        (lambda text: text.replace('"n":3,', '"n":4,', 1), "line 5: n: expected 3, the number of the record, got 4"),
        (lambda text: text.replace('"t":0,"cause":2', '"t":-1,"cause":2'), "line 5: t: expected nanoseconds"),
        (lambda text: text.replace('"cause":2,', '"cause":3,', 1), "line 5: cause: expected the number of a record"),
        (lambda text: text.replace('"type":"phase"', '"type":7', 1), "line 2: type: expected a name, got 7"),
        (lambda text: text + "[" * 100_000, "not JSON"),
    ],
)
def test_a_file_that_cannot_be_drawn(spoil: Callable[[str], str], complaint: str) -> None:
    """One complaint, which names the line and the field."""
    with pytest.raises(PictureError) as error:
        read_recording(spoil(recorded("first")))
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("first", "last", "most", "shown"),
    [
        pytest.param(None, None, 100, (0, 58), id="all of it where there is room"),
        pytest.param(None, None, 10, (0, 9), id="the beginning where nothing is violated"),
        pytest.param(20, None, 10, (20, 29), id="from there"),
        pytest.param(None, 40, 10, (31, 40), id="up to there"),
        pytest.param(20, 22, 10, (20, 22), id="both ends"),
    ],
)
def test_which_records_are_shown(first: int | None, last: int | None, most: int, shown: tuple[int, int]) -> None:
    """A picture has a limit, and says what it shows."""
    window = choose(recording("first"), first, last, most)
    assert (window.first, window.last) == shown
    assert window.text == f"showing records {shown[0]} to {shown[1]} of 59"


def test_a_violation_is_shown_with_what_led_to_it() -> None:
    """Nine tenths of what is shown lie before it."""
    run = read_recording(violated())
    assert run.violation is not None
    window = choose(run, None, None, 100)
    assert window.first <= run.violation.n <= window.last
    assert window.last - window.first == 99


@pytest.mark.parametrize(
    ("first", "last", "complaint"),
    [
        (59, None, "--from: expected a record, 0 to 58, got 59"),
        (None, -1, "--to: expected a record, 0 to 58, got -1"),
        (9, 3, "--to: expected a record, 9 to 58, got 3"),
        (0, 20, "--to: expected at most 10 records, got 21"),
    ],
)
def test_a_range_that_is_none(first: int | None, last: int | None, complaint: str) -> None:
    """What was expected is said."""
    with pytest.raises(PictureError) as error:
        choose(recording("first"), first, last, 10)
    assert str(error.value) == complaint


def test_the_head_is_not_trusted() -> None:
    """A plan whose parts are of other kinds draws what the records say."""
    head, rest = recorded("first").split("\n", 1)
    for topology in ("none", 7, {"hosts": 3, "vms": ["a"], "controllers": [{"name": 4}]}):
        values = json.loads(head)
        values["plan"]["topology"] = topology
        read_recording(f"{json.dumps(values)}\n{rest}")
