"""The plan that a test means: a path beside the test, a shipped name, a mapping, or the message itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fpstate.fault.v1 import plan_pb2

from fault_lab.plan.check import API_VERSION
from fault_lab.plan.load import check_plan, load_plan
from fault_lab.plans import find_plan
from fault_lab.sim.run import unknown_checks

Given = str | os.PathLike[str] | Mapping[str, object] | plan_pb2.Plan


class GivenPlanError(ValueError):
    """What was given is no plan. The text says what was expected."""


@dataclass(frozen=True, slots=True)
class TestPlan:
    """A checked plan. ``word`` is what a command calls it by: a file or a shipped name; empty for one without."""

    __test__ = False

    plan: plan_pb2.Plan
    word: str = ""


def read_plan(given: Given, beside: Path, source: str = "plan") -> TestPlan:
    """Read and check a plan; a path may be relative to the folder ``beside``.

    Raises ``GivenPlanError``, and ``PlanError`` with every mistake in the plan.
    """
    match given:
        case plan_pb2.Plan():
            check_plan(given, source)
            found = TestPlan(given)
        case Mapping():
            tree = {"api-version": API_VERSION, "name": "test", **given}
            found = TestPlan(load_plan(json.dumps(tree), source))
        case str() | os.PathLike():
            found = _file(os.fspath(given), beside)
        case _:
            raise GivenPlanError(f"expected a path, the name of a shipped plan, a mapping or a Plan, got {given!r}")
    wrong = unknown_checks(found.plan)
    if wrong:
        raise GivenPlanError("\n".join(wrong))
    return found


def _file(name: str, beside: Path) -> TestPlan:
    path = beside / name
    if not path.is_file():
        try:
            path = find_plan(name)
        except FileNotFoundError as error:
            raise GivenPlanError(str(error)) from None
        if not path.is_file():
            raise GivenPlanError(f"expected a file, got {name!r}")
        shipped = path.stem == name
        return TestPlan(load_plan(path.read_text(encoding="utf-8"), path.name), name if shipped else str(path))
    return TestPlan(load_plan(path.read_text(encoding="utf-8"), name), os.path.relpath(path))


def with_checks(plan: plan_pb2.Plan, names: tuple[str, ...]) -> plan_pb2.Plan:
    """The plan with these checks: of each kind that is named, those. Raises ``GivenPlanError`` for a name."""
    from fault_lab.sim.rules import ALWAYS, EVENTUALLY

    made = plan_pb2.Plan()
    made.CopyFrom(plan)
    always = [name for name in names if name in ALWAYS]
    eventually = [name for name in names if name in EVENTUALLY]
    made.checks.sometimes[:] = [name for name in names if name not in ALWAYS and name not in EVENTUALLY]
    if always:
        made.checks.always[:] = always
    if eventually:
        made.checks.eventually[:] = eventually
    if not made.checks.sometimes:
        made.checks.sometimes[:] = plan.checks.sometimes
    wrong = unknown_checks(made)
    if wrong:
        known = ", ".join((*ALWAYS, *EVENTUALLY))
        raise GivenPlanError(f"expected some of {known}, or what is to be seen, {wrong[0].removeprefix('checks.')}")
    check_plan(made, "checks")
    return made
