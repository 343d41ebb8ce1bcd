"""A process whose lines are read as they come, and that can be stopped, continued and killed."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

#: How long anything may take that has to happen: for a machine that does much else.
LIMIT_S: Final = 120.0


class LineProcess:
    """A command that writes JSON lines. ``acked`` is the last number that it was acknowledged."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.acked = 0
        self.started: int | None = None
        self.exits: list[str] = []
        self.lost = ""
        #: How often it was told that somebody else has what it had.
        self.fenced = 0
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._changed = threading.Condition()
        self._errors: list[str] = []
        self._readers = [threading.Thread(target=each, daemon=True) for each in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._take(line)
                self._changed.notify_all()

    def _take(self, line: str) -> None:
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            return
        self.fenced += "_FENCED" in line
        self.acked = said.get("acked", self.acked)
        self.started = said.get("start", self.started)
        self.lost = said.get("lost", self.lost)
        if "exit" in said:
            self.exits.append(said["exit"])

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors.append(line)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    @property
    def last_words(self) -> str:
        """What it wrote to standard error last."""
        return "".join(self._errors[-8:])

    def until(self, holds: Callable[[], bool], limit_s: float = LIMIT_S) -> bool:
        """Wait until something holds that its lines, or its end, bring about; whether it does."""
        deadline = time.monotonic() + limit_s
        while not holds():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            with self._changed:
                self._changed.wait(min(left_s, 0.1))
        return True

    def advances(self, by: int = 3) -> bool:
        """Whether it is acknowledged a few more events."""
        target = self.acked + by
        return self.until(lambda: self.acked >= target or not self.alive) and self.acked >= target

    def pause(self) -> None:
        """SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM, and the status; SIGKILL where that does not help."""
        self._process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int:
        """Wait for its end; the status."""
        try:
            status = self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        for reader in self._readers:
            reader.join(LIMIT_S)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
        return status
