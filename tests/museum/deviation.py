"""Where a scenario first says something else than its text: the command, and how many it took to get there."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

from tests.museum.watchdog import ends_within
from tests.scenarios.block import ScenarioError, parse_blocks
from tests.scenarios.runner import run_command
from tests.scenarios.world import World

#: What takes longer hangs: the slowest command of a scenario takes some milliseconds.
STEP_S: Final = 10


@dataclass(frozen=True, slots=True)
class Deviation:
    """After ``steps`` commands something went another way: ``text`` says what was expected and what happened."""

    steps: int
    text: str


def deviation(text: str) -> Deviation | None:
    """Run a scenario up to its first deviation; None where there is none, the replay at its end included.

    Anything that is raised deviates: a violated invariant, an assertion, and an error no code expects.
    """
    world, steps = World(), 0
    try:
        for block in parse_blocks(text):
            for command in block.commands:
                steps += 1
                with ends_within(STEP_S):
                    run_command(world, command)
                said = world.lanes.lines
                if said != block.expected[: len(said)]:
                    return Deviation(steps, f"line {command.line}: {command.text}: {_first(block.expected, said)}")
            if len(said := world.lanes.take()) < len(block.expected):
                return Deviation(steps, f"not said: {block.expected[len(said)]}")
        world.replay()
    except Exception as error:  # noqa: BLE001 -- a mutant may raise anything anywhere, and whatever it is, it is the catch
        return Deviation(steps, f"{type(error).__name__}: {_root(error)}")
    if world.planned is not None:
        return Deviation(steps, "a preemption was planned and never happened")
    return None


def _root(error: Exception) -> BaseException:
    """A ScenarioError only says where it happened; what it is, its cause says."""
    return error.__cause__ if isinstance(error, ScenarioError) and error.__cause__ is not None else error


def _first(expected: tuple[str, ...], said: tuple[str, ...]) -> str:
    pairs = itertools.zip_longest(expected, said, fillvalue="nothing")
    wanted, found = next((wanted, found) for wanted, found in pairs if wanted != found)
    return f"expected {wanted!r}, said {found!r}"
