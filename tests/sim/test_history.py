"""What a run writes down: a whole history, what it is made of, and that it is the same each time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from fpstate.fault.v1 import plan_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from fault_lab.plan.load import load_plan
from fault_lab.plans import shipped_plans
from fault_lab.sim.record import RecordError, read_record, record_lines, replay
from fault_lab.sim.run import DivergenceError, simulate, simulate_twice, unknown_checks
from fault_lab.sim.schedule import as_schedule
from fault_lab.sim.shrink import ddmin
from fault_lab.sim.world import World

HERE = Path(__file__).parent


def plan(name: str) -> plan_pb2.Plan:
    """A plan beside this file."""
    return load_plan((HERE / name).read_text(encoding="utf-8"), name)


FIRST, STORM = plan("first.yaml"), plan("storm.yaml")


def told(lines: list[str]) -> str:
    """A history as a text: time in microseconds, cause, type, and what is said."""
    records = [json.loads(line) for line in lines]
    return "".join(_sentence(record) for record in records)


def _sentence(record: dict[str, object]) -> str:
    head = f"{record['n']:>3} <- {record['cause']:>2} {int(str(record['t'])) // 1000:>6} us  {record['type']:<8}"
    # What is for machines says the same once more: tests/linear/record.txt.
    rest = {key: value for key, value in record.items() if key not in ("n", "cause", "t", "type", "op", "result")}
    return f"{head} " + " ".join(f"{key}={value}" for key, value in rest.items() if value not in (None, "")) + "\n"


def test_a_whole_history() -> None:
    """The founding failure from the first message to the last: first.txt beside this file, line by line."""
    assert told(list(simulate(FIRST).lines)) == (HERE / "first.txt").read_text(encoding="utf-8")


def test_causes_come_before_and_calls_end_once() -> None:
    """Every record names one before it as its cause; every call that ends was begun and ends once."""
    records = [json.loads(line) for line in simulate(STORM, 3).lines]
    assert all(record["cause"] < record["n"] for record in records)
    begun = [record["call"] for record in records if record["type"] == "invoke"]
    ended = [record["call"] for record in records if record["type"] in ("ok", "fail", "info")]
    assert len(set(begun)) == len(begun)
    assert len(set(ended)) == len(ended)
    assert set(ended) <= set(begun)


@pytest.mark.parametrize("name", shipped_plans())
def test_shipped_plans_hold(name: str) -> None:
    """What comes with a release violates nothing, run twice the same; its checks are all known."""
    shipped = load_plan(shipped_plans()[name].read_text(encoding="utf-8"), name)
    assert unknown_checks(shipped) == []
    assert simulate_twice(shipped).violation is None


@pytest.mark.timeout(600)
@settings(max_examples=8, deadline=None)
@given(st.integers(0, (1 << 64) - 1))
def test_one_seed_is_one_world(seed: int) -> None:
    """Any seed of the storm: two runs, one history, and nothing that is violated."""
    assert simulate_twice(STORM, seed).violation is None, f"fpstated sim run tests/sim/storm.yaml --seed {seed}"


def test_a_run_that_is_not_the_same_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something from outside gets into a run: the first record that differs is named."""
    real, worlds = World.record, iter(range(1 << 30))

    def record(world: World, kind: str, /, **fields: object) -> int:
        return real(world, kind, **fields, chance=next(worlds) if kind == "exit" else 0)

    monkeypatch.setattr(World, "record", record)
    with pytest.raises(DivergenceError, match='"type":"exit"'):
        simulate_twice(FIRST)


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_recorded_run_is_replayed() -> None:
    """The file of a run, read and run again, is the same run."""
    lines = list(record_lines(STORM, simulate(STORM, 2)))
    again = replay(read_record("\n".join(lines)))
    assert again.divergence is None
    assert json.loads(lines[-1])["certificate"] == again.result.certificate


def test_a_replay_says_where_it_goes_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal's commits take longer now: the first answer comes later, and that record is shown."""
    text = "\n".join(record_lines(FIRST, simulate(FIRST)))
    monkeypatch.setattr("fault_lab.sim.journal._COMMIT_NS", (900_000, 900_000))
    again = replay(read_record(text))
    assert again.divergence is not None
    was, now = json.loads(again.was), json.loads(again.now)
    answer = again.divergence, "message", "CreateVm reply"
    assert (was["n"], was["type"], was["what"]) == (now["n"], now["type"], now["what"]) == answer
    assert was["t"] < now["t"]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda text: text.replace('"sim": 3', '"sim": 0'), "line 1: sim: expected 3"),
        (lambda text: text.replace('"rules": ', '"rules": 9'), "line 1: rules: expected"),
        (lambda text: text.replace('"seed": "1"', '"seed": "2"', 1), "line 1: plan_sha256: expected the hash"),
        (lambda text: text.replace('"state":"open"', '"state":"paused"'), "its chain does not fit"),
        (lambda text: "{}" + text, "line 1: not JSON"),
        (lambda _text: "[]", "line 1: expected an object"),
        (lambda _text: "", "line 1: not JSON"),
    ],
)
def test_a_file_that_is_none_is_refused(spoil: object, complaint: str) -> None:
    """Other rules, another plan, a changed line: refused, with the line."""
    assert callable(spoil)
    text = "\n".join(record_lines(FIRST, simulate(FIRST)))
    assert spoil(text) != text
    with pytest.raises(RecordError, match=complaint):
        read_record(spoil(text))


# -- schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_run_as_a_schedule_is_the_run(seed: int) -> None:
    """Exactly the hits that fired, without chance: the same hits fire again, and no others."""
    lost = load_plan(shipped_plans()["lost-replies"].read_text(encoding="utf-8"), "lost-replies")
    result = simulate(lost, seed)
    again = simulate(as_schedule(lost, seed, result.fired))
    hits = [(each.point, each.entity, each.hit, each.action) for each in result.fired]
    assert [(each.point, each.entity, each.hit, each.action) for each in again.fired] == hits
    assert _heard(again.lines) == _heard(result.lines)


def _heard(lines: Sequence[str]) -> list[dict[str, object]]:
    """What everybody heard and when, but for revisions: a schedule arms more faults, each of which is a change."""
    records = [json.loads(line) for line in lines]
    kinds = ("ok", "fail", "info", "exit", "decision", "guest")
    drop = ("n", "cause")
    return [
        {k: v for k, v in each.items() if k not in drop}
        for each in records
        if each["type"] in kinds and each.get("f") != "ListExits"
    ]


@given(st.sets(st.integers(0, 30), max_size=5), st.integers(0, 40))
def test_ddmin_keeps_what_is_needed(needed: set[int], size: int) -> None:
    """Of items that fail exactly where all of ``needed`` are there, those are left."""
    items = sorted({*range(size), *needed})
    assert set(ddmin(items, lambda some: needed <= set(some))) == needed
