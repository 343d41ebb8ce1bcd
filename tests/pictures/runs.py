"""Recorded runs to draw, and one in which every text is hostile."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from fpstate.fault.v1 import plan_pb2

from fault_lab.pictures.recording import Recording, read_recording
from fault_lab.plan.load import load_plan
from fault_lab.plans import shipped_plans
from fault_lab.sim.record import record_lines
from fault_lab.sim.run import RunResult, simulate
from tests.sim.mutants import MUTANTS

_SIM = Path(__file__).parent.parent / "sim"
#: What ends an element, an attribute, a string or a comment, and a letter of another script.
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">'\"`${1}&lt;<!-- ]]> é\u2028"


def plan(name: str) -> plan_pb2.Plan:
    """A plan of tests/sim, or one that comes with a release."""
    path = _SIM / f"{name}.yaml"
    path = path if path.exists() else shipped_plans()[name]
    return load_plan(path.read_text(encoding="utf-8"), name)


@cache
def recorded(name: str, seed: int | None = None) -> str:
    """The text of a recorded run."""
    loaded = plan(name)
    return _text(loaded, simulate(loaded, seed))


def recording(name: str, seed: int | None = None) -> Recording:
    """The same, read."""
    return read_recording(recorded(name, seed))


@cache
def violated() -> str:
    """A run of the storm with a planted bug, which the seed is known to find."""
    with pytest.MonkeyPatch.context() as patch:
        MUTANTS["double-decision"].plant(patch)
        loaded = plan("storm")
        result = next(result for seed in range(1, 60) if (result := simulate(loaded, seed)).violation is not None)
    return _text(loaded, result)


def _text(loaded: plan_pb2.Plan, result: RunResult) -> str:
    return "".join(f"{line}\n" for line in record_lines(loaded, result))


def hostile() -> str:
    """The first run, in which every name and every text of the file says what would do harm in a page."""
    head, *lines = recorded("first").splitlines()
    values = json.loads(head)
    values["plan"]["name"] = values["plan"]["description"] = HOSTILE
    values["plan"]["topology"]["controllers"][0]["name"] = HOSTILE
    values["seed"] = HOSTILE
    records = [json.loads(line) for line in lines]
    for record in records[:-1]:
        for name, value in record.items():
            if isinstance(value, str) and name not in {"type", "state", "lost"}:
                record[name] = value + HOSTILE
        record[HOSTILE] = HOSTILE
    records[-1]["certificate"]["verdict"] = HOSTILE
    return "".join(json.dumps(each) + "\n" for each in (values, *records))
