"""What happens when a fault fires: one frozen class a kind. Which kinds a point takes is in ``points``."""

from __future__ import annotations

from dataclasses import dataclass, field

#: MAX_ERRNO. Source: include/linux/err.h.
ERRNO_MAX = 4095


@dataclass(frozen=True, slots=True)
class FailErrno:
    """What was asked for fails with ``errno``, positive, as Linux on x86-64 has it."""

    errno: int


@dataclass(frozen=True, slots=True)
class FailStatus:
    """The call ends with a gRPC status: ``code`` 1..16, and a message."""

    code: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Delay:
    """What was to happen happens later, by ``min_ns``..``max_ns``, drawn for each hit."""

    min_ns: int
    max_ns: int


@dataclass(frozen=True, slots=True)
class Drop:
    """The message is lost."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The message arrives ``copies`` times more."""

    copies: int = 1


@dataclass(frozen=True, slots=True)
class Reorder:
    """The message is overtaken by up to ``depth`` that were sent after it."""

    depth: int = 1


@dataclass(frozen=True, slots=True)
class Corrupt:
    """``bits`` bits of the message are flipped, drawn for each hit."""

    bits: int = 1


@dataclass(frozen=True, slots=True)
class Hold:
    """The message, and all behind it on its way, wait ``for_ns``; 0: until the fault is disarmed or the plan heals.

    ``until_ns``: until so long after the beginning of the run instead, as of a hold whose end was drawn.
    """

    for_ns: int = 0
    until_ns: int = field(default=0, repr=False)


@dataclass(frozen=True, slots=True)
class Kill:
    """The process ends as by SIGKILL, and is started again after ``restart_ns``; None: it stays down until healed."""

    restart_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """The process stands still, as by SIGSTOP, for ``for_ns``."""

    for_ns: int


@dataclass(frozen=True, slots=True)
class Clock:
    """The node's clock jumps by ``jump_ns``, forward or back, and from then on runs ``drift_ppm`` fast or slow."""

    jump_ns: int = 0
    drift_ppm: int = 0


Action = FailErrno | FailStatus | Delay | Drop | Duplicate | Reorder | Corrupt | Hold | Kill | Pause | Clock
