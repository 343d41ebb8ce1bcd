"""Text in, checked plan out: the two steps that everybody wants together."""

from __future__ import annotations

from fpstate.fault.v1 import plan_pb2

from fault_lab.plan.check import problems
from fault_lab.plan.problem import PlanError, placed
from fault_lab.plan.reader import read_text


def load_plan(text: str, source: str = "plan") -> plan_pb2.Plan:
    """Read and check a plan's text; ``source`` names the file in messages.

    Raises ``PlanError`` with every mistake of the first step that has any, each with its line and column.
    """
    read = read_text(text, source)
    found = problems(read.plan)
    if found:
        located = [placed(problem, read.positions) for problem in found]
        raise PlanError(source, sorted(located, key=lambda each: (each.line, each.column)))
    return read.plan


def check_plan(plan: plan_pb2.Plan, source: str = "plan") -> None:
    """Check a plan that was made without a text. Raises ``PlanError``."""
    found = problems(plan)
    if found:
        raise PlanError(source, found)
