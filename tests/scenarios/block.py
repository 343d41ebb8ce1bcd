"""A scenario file as text: blocks of comment, commands and expected output, and nothing lost in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SEPARATOR: Final = "----"


class ScenarioError(Exception):
    """A scenario that cannot be run as it is written: says where and what was expected. Never an expected output."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command and the number of its line in the file, from 1."""

    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Block:
    """What lies between two empty lines. One without commands is a comment that stands alone."""

    comment: tuple[str, ...]
    commands: tuple[Command, ...]
    expected: tuple[str, ...]

    def text(self, output: tuple[str, ...]) -> str:
        """The block as it would stand in the file with ``output`` below the separator."""
        lines = [*self.comment, *(command.text for command in self.commands)]
        if self.commands:
            lines += [SEPARATOR, *output]
        return "\n".join(lines) + "\n"


def parse_blocks(text: str) -> list[Block]:
    """Read a file; ``ScenarioError`` names the line that cannot be read."""
    blocks: list[Block] = []
    start = 1
    for part in text.split("\n\n"):
        lines = part.split("\n")
        if any(lines):
            blocks.append(_parse_block(lines, start))
        start += len(lines) + 1
    return blocks


def format_blocks(blocks: list[Block], outputs: list[tuple[str, ...]]) -> str:
    """The whole file with ``outputs`` in place of what was expected."""
    return "\n".join(block.text(output) for block, output in zip(blocks, outputs, strict=True))


def _parse_block(lines: list[str], start: int) -> Block:
    comment: list[str] = []
    commands: list[Command] = []
    for number, line in enumerate(lines, start):
        if line == SEPARATOR:
            expected = tuple(each for each in lines[number - start + 1 :] if each)
            return Block(tuple(comment), tuple(commands), expected)
        if line.startswith("#"):
            if commands:
                raise ScenarioError(f"line {number}: a comment stands above the commands of its block")
            comment.append(line)
        elif line:
            commands.append(Command(line, number))
    if commands:
        raise ScenarioError(f"line {commands[-1].line}: a block of commands ends with {SEPARATOR} and its output")
    return Block(tuple(comment), (), ())
