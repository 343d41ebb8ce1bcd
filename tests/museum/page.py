"""A page of docs/museum: its text, and the bug shown in a scenario or, where no scenario has the words, in a program.

A program is plain Python over what the tests use, run statement by statement; its assertions hold on the healthy core.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.museum.deviation import STEP_S, Deviation, deviation
from tests.museum.watchdog import ends_within
from tests.scenarios.runner import run

_SHOWN: Final = re.compile(r"^```(scenario|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a page runs: ``kind`` is "scenario" or "python"."""

    kind: str
    text: str

    def deviation(self) -> Deviation | None:
        """Where it first goes another way than it says; None on the healthy core."""
        return deviation(self.text) if self.kind == "scenario" else _program_deviation(self.text)

    def printed(self) -> str:
        """The text as it would stand in the page after a run; a program has no output, so it is what it is."""
        if self.kind == "scenario":
            return run(self.text)
        exec(compile(self.text, "page", "exec"), {})  # noqa: S102 -- a page of this tree
        return self.text


def shown_by(path: Path) -> Shown:
    """What the page runs; ``ValueError`` where there is not exactly one scenario or program."""
    found = _SHOWN.findall(path.read_text(encoding="utf-8"))
    if len(found) != 1:
        raise ValueError(f"{path.name}: expected one ```scenario or ```python block, found {len(found)}")
    return Shown(*found[0])


def rewrite(path: Path, text: str) -> None:
    """Put ``text`` in the place of what the page runs."""
    page = path.read_text(encoding="utf-8")
    path.write_text(_SHOWN.sub(lambda found: f"```{found[1]}\n{text}```", page), encoding="utf-8")


def _program_deviation(source: str) -> Deviation | None:
    """Run statement by statement; imports are no steps."""
    names: dict[str, object] = {}
    steps = 0
    for statement in ast.parse(source).body:
        steps += not isinstance(statement, ast.Import | ast.ImportFrom)
        try:
            with ends_within(STEP_S):
                exec(compile(ast.Module([statement], []), "page", "exec"), names)  # noqa: S102 -- a page of this tree
        except Exception as error:  # noqa: BLE001 -- whatever a mutant raises is the deviation
            return Deviation(steps, f"{ast.unparse(statement).splitlines()[0]}: {type(error).__name__}: {error}")
    return None
