"""Lines for a person where a process writes JSON lines for programs: the same events, rendered as they come."""

from __future__ import annotations

import io
import time

from rich.console import Console

from fpstated.timeline import TimelineLine, parse_any, render


class HumanLines(io.TextIOBase):
    """Give it to a process as its output: each JSON line that is written comes out as a line of a timeline."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._wall_offset_ns = time.time_ns() - time.monotonic_ns()
        self._start_ns: int | None = None

    def writable(self) -> bool:
        """It is for writing."""
        return True

    def write(self, text: str) -> int:
        """Render what ``text`` holds; what is no event is passed over."""
        for raw in text.splitlines():
            line = parse_any(raw, wall_offset_ns=self._wall_offset_ns)
            if line is not None:
                self._show(line)
        return len(text)

    def _show(self, line: TimelineLine) -> None:
        if self._start_ns is None:
            self._start_ns = line.t_ns
        for text in render([line], start_ns=self._start_ns):
            self._console.print(text, soft_wrap=True)
