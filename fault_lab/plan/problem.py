"""What is wrong with a plan, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: the path of the field, what was expected of it and what was found. Lines and columns from 1."""

    path: str
    expected: str
    got: str
    line: int = 0
    column: int = 0

    def text(self, source: str) -> str:
        """``file:line:column: field: expected ..., got ...``."""
        where = f"{source}:{self.line}:{self.column}" if self.line else source
        found = f", got {self.got}" if self.got else ""
        return f"{where}: {self.path or 'plan'}: expected {self.expected}{found}"


class PlanError(ValueError):
    """A plan that cannot be run. ``problems`` has every mistake, in the order of the text."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(problem.text(source) for problem in problems))
        self.source = source
        self.problems = tuple(problems)


#: Where fields stand, by their paths: (line, column), from 1.
Positions = Mapping[str, tuple[int, int]]


def placed(problem: Problem, positions: Positions) -> Problem:
    """The problem with the position of its field, or of the nearest field around it that stands in the text."""
    path = problem.path
    while path not in positions and path:
        path = path.rpartition("[" if path.endswith("]") else ".")[0]
    line, column = positions.get(path, (0, 0))
    return Problem(problem.path, problem.expected, problem.got, line, column)
