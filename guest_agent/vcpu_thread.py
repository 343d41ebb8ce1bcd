"""The thread of one vCPU, watched from the main thread: it ends by itself, or a signal has it stopped."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Generic, TypeVar

Report = TypeVar("Report")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OVER = 0


class VcpuThread(Generic[Report]):
    """Runs `run` in a thread of its own; `stop` must make it return, from any thread and at any time.

    The main thread reads a pipe, into which the signals write their numbers and the thread, at its end, a zero. So a
    signal is heard whichever thread the kernel hands it to, and is acted upon outside of any handler.
    """

    def __init__(self, run: Callable[[], Report], stop: Callable[[], None]) -> None:
        self._run = run
        self._stop = stop
        self._report: Report | None = None
        self._error: BaseException | None = None

    def run_until_over(self) -> tuple[Report, int]:
        """Run to the end; returns what `run` returned and the number of the signal that had it stopped, 0 for none.

        Call it from the main thread. Raises what `run` raises.
        """
        with _signals_to_pipe() as (read_end, write_end):
            thread = threading.Thread(target=self._main, args=(write_end,), name="fpstated-vcpu", daemon=True)
            thread.start()
            number = _next_of(read_end, (_OVER, *_SIGNALS))
            if number != _OVER:
                self._stop()
            thread.join()
        if self._error is not None:
            raise self._error
        assert self._report is not None, "a run without an error has a report"
        return self._report, number

    def _main(self, write_end: int) -> None:
        try:
            self._report = self._run()
        except BaseException as error:  # noqa: BLE001 -- raised where somebody waits for it
            self._error = error
        finally:
            os.write(write_end, bytes([_OVER]))


@contextmanager
def _signals_to_pipe() -> Iterator[tuple[int, int]]:
    """Yield the ends of a pipe into which every signal that Python handles writes its number.

    Source: Python's signal.set_wakeup_fd; the C part of a handler writes, in whichever thread it runs.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = {number: signal.signal(number, _ignore) for number in _SIGNALS}
    wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield read_end, write_end
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_end)
        os.close(write_end)


def _next_of(read_end: int, wanted: tuple[int, ...]) -> int:
    """Read numbers until a wanted one comes; those of other signals are their own handlers' business."""
    while (number := os.read(read_end, 1)[0]) not in wanted:
        pass
    return number


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the pipe has the number."""
