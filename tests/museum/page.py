"""A page of docs/museum: its headline, its fields, and the shortest scenario, which is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_SCENARIO: Final = re.compile(r"^```scenario\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def scenario_of(path: Path) -> str:
    """The scenario in a page; ``ValueError`` where there is not exactly one."""
    found = _SCENARIO.findall(path.read_text(encoding="utf-8"))
    if len(found) != 1:
        raise ValueError(f"{path.name}: expected one block that opens with ```scenario, found {len(found)}")
    return str(found[0])


def rewrite_scenario(path: Path, scenario: str) -> None:
    """Put ``scenario`` in the place of the page's."""
    text = path.read_text(encoding="utf-8")
    path.write_text(_SCENARIO.sub(lambda _found: f"```scenario\n{scenario}```", text), encoding="utf-8")
