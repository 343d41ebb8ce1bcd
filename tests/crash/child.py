"""A process of a campaign: it is told where to begin in one line, and reports in lines from then on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress

from tests.crash.record import Record

END_S = 60.0


class Child:
    """A client that can be killed and started again; what it says goes into ``record``."""

    def __init__(self, record: Record, *command: str, **start: object) -> None:
        """``command`` is what Python runs; ``start`` is for the first line, where it takes one."""
        self.record = record
        self._command = command
        self._start = start
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.errors: deque[str] = deque(maxlen=40)

    def start(self) -> None:
        """Begin, or go on where the record is."""
        self._process = process = subprocess.Popen(
            [sys.executable, *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None
        if self._start:
            process.stdin.write(json.dumps(self.record.start_line(**self._start)) + "\n")
        process.stdin.close()
        self._reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()
        threading.Thread(target=self._complain, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with suppress(json.JSONDecodeError):  # the last line of a process that was killed may be half of one
                    self.record.take(json.loads(line))

    def _complain(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            self.errors.extend(process.stderr)

    @property
    def ended(self) -> bool:
        """Whether it is over though nobody has ended it."""
        return self._process is not None and self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL; everything it said is in the record afterwards. Nothing to do where it has not begun."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._over()

    def stop(self) -> None:
        """SIGTERM, and the end in peace."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._over()

    def _over(self) -> None:
        assert self._process is not None
        assert self._reader is not None
        self._process.wait()
        self._reader.join(END_S)
