"""The thread of one vCPU, watched from the main thread: it ends by itself, or a signal has it stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Generic, TypeVar

Report = TypeVar("Report")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class VcpuThread(Generic[Report]):
    """Runs `run` in a thread of its own; `stop` must make it return, from any thread and at any time.

    A signal handler of Python's runs in the main thread, between two instructions of whatever stands there; so the
    guest runs elsewhere, the main thread only waits, and what a signal asks for is done outside of its handler.
    """

    def __init__(self, run: Callable[[], Report], stop: Callable[[], None]) -> None:
        self._run = run
        self._stop = stop
        self._over_or_signalled = threading.Event()
        self._signal = 0
        self._report: Report | None = None
        self._error: BaseException | None = None

    def run_until_over(self) -> tuple[Report, int]:
        """Run to the end; returns what `run` returned and the number of the signal that had it stopped, 0 for none.

        Call it from the main thread. Raises what `run` raises.
        """
        thread = threading.Thread(target=self._main, name="fpstated-vcpu", daemon=True)
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            thread.start()
            self._over_or_signalled.wait()
            if self._signal:
                self._stop()
            thread.join()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._error is not None:
            raise self._error
        assert self._report is not None, "a run without an error has a report"
        return self._report, self._signal

    def _main(self) -> None:
        try:
            self._report = self._run()
        except BaseException as error:  # noqa: BLE001 -- raised where somebody waits for it
            self._error = error
        finally:
            self._over_or_signalled.set()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signal = number
        self._over_or_signalled.set()
