"""The output: lines in lanes, ``H`` the host, ``G`` the guest, ``U`` userspace, and a right-hand column."""

from __future__ import annotations

from typing import Final

_RIGHT_COLUMN: Final = 48


class Lanes:
    """Collects the lines of one block."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def host(self, left: str, right: str = "") -> None:
        """A line of the host."""
        self._add("H", left, right)

    def inner(self, left: str, right: str = "") -> None:
        """A line of the host inside the one above: a hardware operation, an allocation."""
        self._add("H", "  " + left, right)

    def guest(self, left: str, right: str = "") -> None:
        """A line of the guest."""
        self._add("G", left, right)

    def user(self, left: str, right: str = "") -> None:
        """A line of userspace."""
        self._add("U", left, right)

    def event(self, lane: str, text: str) -> None:
        """An event of a guest, in the lane it belongs to."""
        self._add(lane, text, "")

    def append(self, right: str) -> None:
        """Complete the last line with its right-hand column."""
        self._lines[-1] = _columns(self._lines[-1], right)

    @property
    def count(self) -> int:
        """How many lines there are: whether something was said since, is asked with it."""
        return len(self._lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """What was said since the last ``take``."""
        return tuple(self._lines)

    def take(self) -> tuple[str, ...]:
        """Hand the lines over."""
        lines, self._lines = tuple(self._lines), []
        return lines

    def _add(self, lane: str, left: str, right: str) -> None:
        self._lines.append(_columns(f"{lane}  {left}", right))


def _columns(left: str, right: str) -> str:
    return f"{left:<{_RIGHT_COLUMN - 1}} {right}" if right else left
