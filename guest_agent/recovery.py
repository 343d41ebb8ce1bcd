"""What to do about a call that failed: send it again at once, after a while, in a new session, or not at all."""

from __future__ import annotations

import enum
import random
import time

from guest_agent.outcome import Refusal

#: A session that is over without anybody having taken its place: a new one goes on.
_REOPENED = frozenset({"SESSION_EXPIRED", "SESSION_NOT_FOUND"})
#: Something of the moment on the host's side.
_SHORTLY = frozenset(
    {"VCPU_BUSY", "HOST_DRAINING", "RATE_LIMITED", "STORAGE_FULL", "STORAGE_FAILED", "MIGRATION_IN_PROGRESS"}
)


class Remedy(enum.Enum):
    """What makes a failed call worth repeating."""

    AGAIN = enum.auto()  # at once: its deadline has passed, the event is where it was
    LATER = enum.auto()  # after a pause: nobody was there
    REOPEN = enum.auto()  # in a new session
    MOVE = enum.auto()  # in a new session on another host, which the refusal names as `target`
    NONE = enum.auto()  # nothing: the caller has to know


def remedy(refusal: Refusal) -> Remedy:
    """Return what to do about a call of a session that was refused so."""
    if refusal.reason in _REOPENED:
        return Remedy.REOPEN
    if refusal.reason == "VM_MOVED":
        return Remedy.MOVE
    if refusal.code == "DEADLINE_EXCEEDED":
        return Remedy.AGAIN
    if refusal.reason in _SHORTLY:
        return Remedy.LATER
    # Without a reason it is gRPC that speaks: the connection, or the server's stop, which cancels what it serves.
    gone = not refusal.reason and refusal.code in ("UNAVAILABLE", "CANCELLED")
    return Remedy.LATER if gone else Remedy.NONE


class Patience:
    """Pauses that double, with jitter, until `total_s` seconds have gone by since the first of them."""

    def __init__(self, *, total_s: float, first_s: float = 0.1, longest_s: float = 2.0) -> None:
        self._total_s = total_s
        self._first_s = first_s
        self._longest_s = longest_s
        self.reset()

    def reset(self) -> None:
        """Begin anew: somebody answered."""
        self._next_s = self._first_s
        self._until: float | None = None

    def pause_s(self, at_least_s: float | None = None) -> float | None:
        """Return how long to wait now, in seconds; None once the patience is at its end.

        Between half of the nominal pause and all of it, so that many agents do not come back in one moment.
        """
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._total_s
        if now >= self._until:
            return None
        nominal, self._next_s = self._next_s, min(self._next_s * 2, self._longest_s)
        return max(random.uniform(nominal / 2, nominal), at_least_s or 0.0)
