"""What an intercept says. Two kinds that are never mixed: what the guest sees, and an exit to userspace."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from fpu_core.cpu import Vector
from fpu_core.realloc import Reallocated, ReallocFailed


class Trigger(enum.Enum):
    """Which write the container was too small for."""

    XSETBV = "XSETBV"
    WRMSR_XFD = "WRMSR XFD"


@dataclass(frozen=True, slots=True)
class PendingWrite:
    """A legal write that has not happened yet: the state it would make."""

    trigger: Trigger
    xcr0: int
    xfd: int


@dataclass(frozen=True, slots=True)
class Done:
    """The instruction took effect; the guest goes on behind it.

    ``value`` is what a read returns, ``data`` the bytes a register read or a tile store gives.
    """

    value: int | None = None
    data: bytes = b""
    reallocated: Reallocated | None = None


#: What most instructions come to.
DONE: Final = Done()


@dataclass(frozen=True, slots=True)
class Inject:
    """An architectural event: the guest takes ``vector`` at the instruction, which has not happened."""

    vector: Vector
    #: Pushed with #GP, None where the vector has none.
    error_code: int | None = None
    #: What XFD_ERR reads in the handler.
    xfd_err: int = 0
    #: The rule that was broken, for whoever reads the log. The guest never sees it.
    why: str = ""


@dataclass(frozen=True, slots=True)
class ReallocExit:
    """An exit to userspace: the container could not grow, the write has not happened, the vCPU is parked."""

    write: PendingWrite
    failed: ReallocFailed
    old_xcr0: int
    old_xfd: int


Intercepted = Done | Inject | ReallocExit


def gp(why: str) -> Inject:
    """#GP(0)."""
    return Inject(Vector.GP, error_code=0, why=why)
