"""The process that makes a snapshot while the host goes on, seen from the host."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path


class SnapshotProcess:
    """One run of ``host_agent.journal.snapshotter``. ``done`` is called on a thread of its own, with what went wrong.

    That is an empty text where nothing did. After ``close`` it is not called any more.
    """

    def __init__(self, directory: Path, done: Callable[[str], None]) -> None:
        self._done = done
        self._closed = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "host_agent.journal.snapshotter", str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._thread = threading.Thread(target=self._wait, name="snapshot", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        _, said = self._process.communicate()
        if not self._closed:
            status = self._process.returncode
            self._done(said.strip() or f"status {status}" if status else "")

    def close(self) -> None:
        """End it, whether it is done or not."""
        self._closed = True
        self._process.kill()
        self._thread.join()
