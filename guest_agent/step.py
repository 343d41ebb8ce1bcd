"""What goes over a port, for whoever watches it: a timeline, a test."""

from __future__ import annotations

from dataclasses import dataclass

from guest_agent.event import GuestEvent
from guest_agent.outcome import Outcome, Pending


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """An event without its final outcome: its number, what it was, and on which exit it waits.

    `event` is None where an earlier agent of the vCPU sent it; `pending.exit` is empty where nobody has said yet.
    """

    seq: int
    event: GuestEvent | None
    pending: Pending


@dataclass(frozen=True, slots=True)
class PortStep:
    """One thing that went over a port: event `seq` of `vcpu` came to `outcome`, which may be pending.

    `outcome` is None when the event is sent for the first time; `event` is None where an earlier agent sent it.
    """

    vcpu: str
    seq: int
    event: GuestEvent | None
    outcome: Outcome | None
