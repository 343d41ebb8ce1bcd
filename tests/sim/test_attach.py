"""Agents on Attach streams in the simulated world: numbers, streams that are lost, credits, directives."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fpstate.fault.v1 import plan_pb2

from fault_lab.plan.load import load_plan
from fault_lab.sim.attach import Streams
from fault_lab.sim.run import RunResult, simulate
from tests.sim.mutants import MUTANTS

ATTACHED = load_plan((Path(__file__).parent / "attached.yaml").read_text(encoding="utf-8"), "attached.yaml")
ONE = """
api-version: fpstate.fault.v1
name: one-stream
topology:
  hosts: [{name: host}]
  vms: [{name: a, attach: 3}]
  controllers: [{name: ctl, policies: [pause]}]
workload: {guests: [{random: {events: 6, seed: 3}}]}
"""
LOST = """
faults:
  - name: lost
    point: link.message
    scope: {entity: "vms/a->host", trigger: Attach message}
    attributes: {fail-nth: 1}
    action: drop
"""
RUNS = 12


@cache
def run(seed: int) -> RunResult:
    """One run of the plan in which nearly everything happens to streams."""
    return simulate(ATTACHED, seed)


def records(result: RunResult, **wanted: object) -> list[dict[str, Any]]:
    """The records with these fields."""
    return [each for each in map(json.loads, result.lines) if all(each.get(key) == wanted[key] for key in wanted)]


def plan_of(text: str) -> plan_pb2.Plan:
    """A plan of these lines."""
    return load_plan(text, "plan")


def said(result: RunResult) -> list[str]:
    """What was asked of the vCPU, and what was heard, in order."""
    told = [each for each in map(json.loads, result.lines) if each.get("process") == "vms/a/vcpus/0"]
    return [f"{each['type']} {each['f']} {each['value']}" for each in told]


def test_several_events_are_under_way() -> None:
    """Three events are sent before the first is answered, and each has its number and its outcome once."""
    result = simulate(plan_of(ONE))
    assert result.violation is None
    assert said(result) == [
        "invoke SubmitEvents epoch 2: 1 Preempt",
        "invoke SubmitEvents epoch 2: 2 Preempt",
        "invoke SubmitEvents epoch 2: 3 Wrmsr msr=0x1c4 value=0x40000",
        "ok SubmitEvents rejected VCPU_NOT_ENTERED",
        "invoke SubmitEvents epoch 2: 4 Preempt",
        "ok SubmitEvents rejected VCPU_NOT_ENTERED",
        "invoke SubmitEvents epoch 2: 5 RegisterWrite",
        "ok SubmitEvents done",
        "invoke SubmitEvents epoch 2: 6 Hlt",
        "ok SubmitEvents done",
        "ok SubmitEvents #UD",
        "ok SubmitEvents done",
    ]


def test_what_was_lost_is_sent_again_under_its_number() -> None:
    """The stream that has lost a message is given up after its keep-alives; the next one carries the same events."""
    result = simulate(plan_of(ONE + LOST))
    assert result.violation is None
    assert [each.fault for each in result.fired] == ["lost"]
    lines = said(result)
    sent = [line for line in lines if line.startswith("invoke")]
    assert [line.partition(": ")[2] for line in sent[:3]] == [line.partition(": ")[2] for line in sent[3:6]]
    assert lines[3:6] == [f"info SubmitEvents {seq}: the stream is lost" for seq in (1, 2, 3)]
    assert len(records(result, f="Attach", type="invoke")) == 2


@pytest.mark.parametrize("seed", range(RUNS))
def test_nothing_is_violated_whatever_happens_to_streams(seed: int) -> None:
    """Streams break, hosts and agents end, credits are few: every check holds."""
    result = run(seed)
    assert result.violation is None, f"fpstated sim run tests/sim/attached.yaml --seed {seed}"
    assert not result.cut_short


def test_all_of_it_has_happened() -> None:
    """Every fault has fired, streams were opened again, events were given back."""
    results = [run(seed) for seed in range(RUNS)]
    assert {each.fault for result in results for each in result.fired} == {fault.name for fault in ATTACHED.faults}
    heard = Counter(
        each["result"]["outcome"] for result in results for each in records(result, type="ok", f="SubmitEvents")
    )
    assert {"done", "inject", "pending", "blocked"} <= heard.keys()
    told = Counter(each["kind"] for result in results for each in records(result, type="directive"))
    assert {"PAUSE", "STOP", "RESET"} <= told.keys()
    assert sum(len(records(result, f="Attach", type="info")) for result in results) > RUNS


@pytest.mark.parametrize(("credits_", "most"), [(1, 1), (2, 2), (0, 3)])
def test_no_more_is_under_way_than_there_are_credits(credits_: int, most: int) -> None:
    """The plan would have three events under way; 0 credits are as many as the host agent reckons."""
    result = simulate(plan_of(ONE.replace("{name: host}", f"{{name: host, session-credits: {credits_}}}")))
    assert result.violation is None
    under_way, seen = 0, 0
    for line in said(result):
        under_way += 1 if line.startswith("invoke") else -1
        seen = max(seen, under_way)
    assert seen == most


def test_a_repeated_number_that_is_taken_once_more_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """On streams as well as by calls."""
    mutant = MUTANTS["answers-again"]
    mutant.plant(monkeypatch)
    found = next((found for seed in range(RUNS) if (found := simulate(ATTACHED, seed).violation)), None)
    assert found is not None
    assert found.check in mutant.checks


def test_an_outcome_that_goes_to_nobody_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that tells no stream what came of a pending event leaves its guest waiting."""
    monkeypatch.setattr(Streams, "outcome", lambda _self, _outcome: None)
    text = ONE.replace("[pause]", '["retry"]') + (
        "faults: [{name: no-memory, point: fpstate.realloc.alloc, attributes: {fail-nth: 1}}]\n"
    )
    found = simulate(plan_of(text.replace("{random: {events: 6, seed: 3}}", "{mix: after-nm}"))).violation
    assert found is not None
    assert found.check == "guests-end"


def test_a_directive_that_is_never_acknowledged_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that tells nobody of a PAUSE."""
    monkeypatch.setattr(Streams, "directive", lambda _self, _session, _directive: None)
    text = ONE.replace("{random: {events: 6, seed: 3}}", "{mix: after-nm}") + (
        "faults: [{name: no-memory, point: fpstate.realloc.alloc, attributes: {fail-nth: 1}}]\n"
    )
    found = simulate(plan_of(text)).violation
    assert found is not None
    assert found.check == "directives-arrive"
