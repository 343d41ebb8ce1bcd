"""What arrives at a host, as a message has it: sessions and controls by who opened them and how often, never by name.

A session that an agent opened the second time is the second session of that agent in every order of events, whatever
name and epoch it was given there. So states that differ in names alone are one state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from fault_lab.explore.desks import Decided

Kind = Literal["open", "submit", "wait", "control", "decide", "opened", "answer", "held"]


class Message(NamedTuple):
    """A message on its way, in numbers alone.

    Attributes:
        kind: the first five go to the host, the others come from it.
        who: a vCPU (submit, wait, answer), a VM (open, opened) or a controller.
        life: which session of the VM's agent, or control of the controller, from 1.
        what: the event's number (submit, wait), the decision (decide), the reply (from the host).
        more: the position that the event is of (submit), which copy of the decision (decide).
        fresh: whether somebody waits for it; a copy that came too late is answered to nobody.
    """

    kind: Kind
    who: int
    life: int
    what: int = 0
    more: int = 0
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class Open:
    """An agent opens its session ``life``."""

    vm: int
    life: int


@dataclass(frozen=True, slots=True)
class Submit:
    """An agent sends the event of a position."""

    vcpu: int
    life: int
    seq: int
    position: int


@dataclass(frozen=True, slots=True)
class Wait:
    """An agent waits for the final outcome of an event."""

    vcpu: int
    life: int
    seq: int


@dataclass(frozen=True, slots=True)
class Acquire:
    """A controller acquires its control ``life`` and lists what is open."""

    controller: int
    life: int


@dataclass(frozen=True, slots=True)
class Decide:
    """A controller's decision arrives. ``copy`` tells the request ids of one decision apart."""

    controller: int
    life: int
    decided: Decided
    copy: int


@dataclass(frozen=True, slots=True)
class Heard:
    """An agent has heard a reply (by number): no command, a line in the rules' books."""

    vcpu: int
    seq: int
    reply: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A guest has come to its end at a position."""

    vcpu: int
    position: int


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock goes on to the first exit's deadline, or, with ``vm``, until the lease of its session is over.

    Everybody in ``agents`` (VM, life) and ``controllers`` is alive and renews what it holds meanwhile.
    """

    vm: int | None
    agents: tuple[tuple[int, int], ...]
    controllers: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Recover:
    """The host's process has ended; this state is what was durable, and it comes back."""


Request = Open | Submit | Wait | Acquire | Decide | Heard | Ended | Clock | Recover
