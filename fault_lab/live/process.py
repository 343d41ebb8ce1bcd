"""A node of a live run as a process: started, killed, stopped for a while, started again; never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from fault_lab.live.child import PARENT

#: How long a process has to end in peace, in seconds.
_GRACE_S: Final = 5.0

#: What hears of each line that a process writes to standard output, and of its end: (process, line or None).
OnLine = Callable[["LiveProcess", str | None], None]


class LiveProcess:
    """One process at a time of one node. Start it in a thread that outlives it: it ends with that one (child).

    ``life`` counts its starts. Standard error goes to a file beside the others of the run.
    """

    def __init__(self, name: str, folder: Path, on_line: OnLine) -> None:
        self.name = name
        self.log = folder / f"{name.replace('/', '-')}.log"
        self.life = 0
        self.paused = False
        self._on_line = on_line
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether it is there, standing still or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> int | None:
        """The exit status of the last one, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None, "it was started"
        return self._process.pid

    def start(self, module: str, arguments: Sequence[str], *, said: str = "") -> None:
        """Start it; ``said`` is what it finds on its standard input, which stays open until it is to end."""
        assert not self.running, f"{self.name} runs"
        self._shut()
        self.life += 1
        self.paused = False
        command = [sys.executable, "-m", "fault_lab.live.child", module, *arguments]
        with self.log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C is the runner's to hear
            )
        if said:
            self._say(said)
        self._reader = threading.Thread(target=self._read, args=(self._process,), name=f"read {self.name}", daemon=True)
        self._reader.start()

    def _say(self, text: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as said:
            for line in said:
                self._on_line(self, line)
        process.wait()
        self._on_line(self, None)

    # -- what a nemesis does -------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Nothing to do where it is not there."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._shut()

    def pause(self) -> None:
        """SIGSTOP: it stands still, and its sockets stay open."""
        if self.running:
            self.paused = True
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        if self.running and self.paused:
            self.paused = False
            self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ask it to end, and see to it."""
        if self._process is None:
            return
        self.resume()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._shut()

    def _signal(self, number: int) -> None:
        """To the process and to those that it has started, which are a group of their own."""
        if self.running:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _shut(self) -> None:
        """Close what is open of a process that has ended."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join(_GRACE_S)

    def tail(self, lines: int = 5) -> str:
        """The last lines of its standard error."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
