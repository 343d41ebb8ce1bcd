"""``each 1-4,8 COMMAND``: a command for each of many numbers, which stand for ``{}`` in it, told by what came of it."""

from __future__ import annotations

from collections.abc import Callable

from tests.scenarios.block import ScenarioError
from tests.scenarios.lanes import Lanes, Line


def each(lanes: Lanes, text: str, run_one: Callable[[str], None]) -> None:
    """Run ``text``'s command for every number; one line for all that ended the same way, ``i`` in place of ``{}``."""
    words = text.split(None, 2)
    if len(words) < 3 or "{}" not in words[2]:
        raise ScenarioError("each: expected numbers such as 1-4,8 and a command with {}")
    template = words[2]
    first: dict[str, Line] = {}
    found: dict[str, list[int]] = {}
    for value in _numbers(words[1]):
        line = lanes.count
        run_one(template.replace("{}", str(value)))
        said = lanes.cut(line)
        answer = "; ".join([said[0].right, *(f"{more.left} {more.right}".strip() for more in said[1:])])
        first.setdefault(answer, said[0])
        found.setdefault(answer, []).append(value)
    told = template.replace("{}", "i").removeprefix("guest ")
    for answer, values in found.items():
        lanes.event(first[answer].lane, f"{told}, {len(values)} times")
        lanes.append(f"{answer}: i={_ranges(values)}")


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        if not low.isdecimal() or not (high or low).isdecimal():
            raise ScenarioError(f"each: expected numbers such as 1-4,8, got {text!r}")
        numbers.extend(range(int(low), int(high or low) + 1))
    return numbers


def _ranges(values: list[int]) -> str:
    """1-4,8 again."""
    parts: list[list[int]] = []
    for value in values:
        if parts and parts[-1][-1] == value - 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
