"""The output: lines in lanes, ``H`` the host, ``G`` the guest, ``U`` userspace, and a right-hand column."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

_RIGHT_COLUMN: Final = 48


@dataclass(frozen=True, slots=True)
class Line:
    """One line: what happened on the left, what came of it on the right."""

    lane: str
    left: str
    right: str

    def text(self) -> str:
        """The line as a file has it."""
        left = f"{self.lane}  {self.left}"
        return f"{left:<{_RIGHT_COLUMN - 1}} {self.right}" if self.right else left


class Lanes:
    """Collects the lines of one block."""

    def __init__(self) -> None:
        self._lines: list[Line] = []

    def host(self, left: str, right: str = "") -> None:
        """A line of the host."""
        self._lines.append(Line("H", left, right))

    def inner(self, left: str, right: str = "") -> None:
        """A line of the host inside the one above: a hardware operation, an allocation."""
        self._lines.append(Line("H", "  " + left, right))

    def guest(self, left: str, right: str = "") -> None:
        """A line of the guest."""
        self._lines.append(Line("G", left, right))

    def user(self, left: str, right: str = "") -> None:
        """A line of userspace."""
        self._lines.append(Line("U", left, right))

    def event(self, lane: str, text: str) -> None:
        """An event of a guest, in the lane it belongs to."""
        self._lines.append(Line(lane, text, ""))

    def append(self, right: str) -> None:
        """Complete the last line with its right-hand column."""
        last = self._lines[-1]
        self._lines[-1] = replace(last, right=f"{last.right} {right}" if last.right else right)

    @property
    def count(self) -> int:
        """How many lines there are: whether something was said since, is asked with it."""
        return len(self._lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """What was said since the last ``take``."""
        return tuple(line.text() for line in self._lines)

    def cut(self, count: int) -> list[Line]:
        """Take back what was said since there were ``count`` lines."""
        said, self._lines[count:] = self._lines[count:], []
        return said

    def take(self) -> tuple[str, ...]:
        """Hand the lines over."""
        return tuple(line.text() for line in self.cut(0))
