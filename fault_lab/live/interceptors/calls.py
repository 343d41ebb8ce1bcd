"""What is asked around a call: the points of a plan, and the caller's own headers where they are switched on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import grpc

from fault_lab.live.interceptors.headers import HeaderFaults
from fault_lab.live.interceptors.steps import Step, Wait, step_of
from fault_lab.live.points import LiveFaults

SEND: Final = "rpc.client.send"
RECEIVE: Final = "rpc.client.receive"
SERVER_RECEIVE: Final = "rpc.server.receive"
SERVER_REPLY: Final = "rpc.server.reply"

#: Statuses that a client's own gRPC makes when no answer came: nothing was received.
_NO_ANSWER: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
)


class CallFaults:
    """The faults of the calls of a client or a server.

    ``faults`` None: no point is asked. ``headers`` None: no header is obeyed. ``max_active``: where so many calls are
    waiting because of a fault, no other is made to fail or wait, and its points are not asked.
    """

    def __init__(
        self, faults: LiveFaults | None = None, *, headers: HeaderFaults | None = None, max_active: int | None = None
    ) -> None:
        if max_active is not None and max_active < 0:
            raise ValueError(f"max_active: expected 0 or more, got {max_active}")
        self._faults = faults
        self._headers = headers
        self._max_active = max_active
        self._active = 0
        self._lock = threading.Lock()

    @property
    def off(self) -> bool:
        """Whether nothing can happen, so that a call need not be looked at."""
        return self._faults is None and self._headers is None

    def opening(self, point: str, path: str, metadata: Iterable[tuple[str, Any]] | None) -> list[Step]:
        """A call of the method ``path`` begins: what comes before any traffic."""
        asked = self._headers.steps(path, metadata) if self._headers is not None and not self._full else []
        return [*asked, *self.at(point, path)]

    def at(self, point: str, path: str) -> list[Step]:
        """A point was reached."""
        if self._faults is None or self._full:
            return []
        firing = self._faults.hit(point, path, path.rpartition("/")[2])
        return [] if firing is None else [step_of(firing)]

    def answered(self, path: str, code: grpc.StatusCode | None) -> list[Step]:
        """A client has an answer, with this status; None for a message of a stream. Of what did not come none is."""
        return [] if code in _NO_ANSWER else self.at(RECEIVE, path)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def block(self, step: Wait, until: float | None) -> bool:
        """Wait in this thread, at most until that moment of ``time.monotonic()``; whether it was in time."""
        over = threading.Event()
        left = None if until is None else until - time.monotonic()
        seconds = _least(step.seconds, left)
        with self._waiting(step, over.set):
            over.wait(seconds)
        return until is None or time.monotonic() < until

    async def wait(self, step: Wait, until: float | None) -> bool:
        """Wait in this event loop, as ``block`` does."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        left = None if until is None else until - time.monotonic()
        with self._waiting(step, lambda: loop.call_soon_threadsafe(over.set)), suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), _least(step.seconds, left))
        return until is None or time.monotonic() < until

    @contextmanager
    def _waiting(self, step: Wait, release: Any) -> Iterator[None]:  # noqa: ANN401
        """One call more waits; ``release`` is called when the fault that holds it does not stand any more."""

        def changed() -> None:
            assert self._faults is not None
            if not self._faults.stands(step.fault):
                release()

        held = self._faults is not None and step.fault
        end = self._faults.when_changed(changed) if self._faults is not None and held else lambda: None
        with self._lock:
            self._active += 1
        if held:
            changed()  # it may have gone since it fired
        try:
            yield
        finally:
            end()
            with self._lock:
                self._active -= 1

    @property
    def _full(self) -> bool:
        return self._max_active is not None and self._active >= self._max_active


def _least(a: float | None, b: float | None) -> float | None:
    given = [max(0.0, each) for each in (a, b) if each is not None]
    return min(given, default=None)


def moment(timeout: float | None) -> float | None:
    """When a call's deadline passes, on ``time.monotonic()``."""
    return None if timeout is None else time.monotonic() + timeout
