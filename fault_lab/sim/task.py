"""What a node's process does, as a generator: it yields what it waits for and is sent what came of it.

    reply = yield Call("OpenSession", command, timeout_ns)      # the reply, or a Refusal
    yield Sleep(ns)
    yield Wait(signal)

No thread and no event loop: the world resumes a task when its time has come, and closes it when its node dies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from guest_agent.outcome import Refusal


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait so many nanoseconds of the node's clock."""

    ns: int


@dataclass(frozen=True, slots=True)
class Call:
    """Ask a host, the node's own where none is named; the task is sent the reply or a Refusal.

    ``process`` is who asks, for the history.
    """

    method: str
    request: object
    timeout_ns: int
    process: str = ""
    host: str = ""


class Signal:
    """Something that tasks wait for: ``give`` resumes all that wait now."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def give(self) -> None:
        """It has happened."""
        waiting, self.waiting = self.waiting, []
        for resume in waiting:
            resume()


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for a signal."""

    signal: Signal


class Stream:
    """A stream of answers as its reader sees it: what has come, and the status that it ended with."""

    def __init__(self) -> None:
        self.news: deque[Any] = deque()
        self.ended: Refusal | None = None
        self.changed = Signal()

    def put(self, message: object) -> None:
        """A message has come; none does once the stream has ended."""
        if self.ended is None:
            self.news.append(message)
            self.changed.give()

    def end(self, status: Refusal) -> None:
        """It is over; what has come before is still read."""
        if self.ended is None:
            self.ended = status
            self.changed.give()


#: What a task yields, and the generator that it is.
Step = Sleep | Call | Wait
Task = Generator[Step, Any, Any]


def next_of(stream: Stream) -> Generator[Step, Any, Any]:
    """Wait for the next message of a stream and return it, or the Refusal that it ended with."""
    while not stream.news:
        if stream.ended is not None:
            return stream.ended
        yield Wait(stream.changed)
    return stream.news.popleft()
