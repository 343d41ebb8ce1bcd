"""Mutants may hang; then somebody has to say so."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` in the main thread where the block has not ended after ``seconds``."""

    def say_so(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"it does not end: {seconds:g} s have passed")

    before = signal.signal(signal.SIGALRM, say_so)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
