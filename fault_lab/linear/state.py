"""What is remembered of a vCPU between two operations, small and hashable."""

from __future__ import annotations

from typing import Final, NamedTuple

from fpu_core.xfeature import XFEATURE_MASK_FP, XFEATURE_MASK_USER_DYNAMIC

DYNAMIC: Final = XFEATURE_MASK_USER_DYNAMIC


class Parked(NamedTuple):
    """Waiting in front of a write. The exit is at ``generation`` or later; ``timer``: it is retried by itself."""

    xcr0: int
    xfd: int
    generation: int
    timer: bool = False


class Heard(NamedTuple):
    """What an event came to: ``done``, ``#UD``, ``#NM``, ``#GP``, ``gone``, ``pending`` or ``rejected``.

    ``value`` is what a read returned, of #NM XFD_ERR, of ``pending`` the generation; None where nothing is said.
    ``grown`` is the size of the new container, 0 for none, -1 where nothing is said.
    """

    tag: str
    value: int | None = None
    grown: int = 0


class State(NamedTuple):
    """A vCPU. ``seq`` is the event taken last, ``settled`` what it came to. ``osxsave`` is None until CR4 is reported.

    ``xfeatures`` and ``size`` are the container's; 0 while nobody has said.
    """

    life: str = "absent"
    seq: int = 0
    xcr0: int = XFEATURE_MASK_FP
    xfd: int = 0
    xfd_err: int = 0
    osxsave: bool | None = None
    xfeatures: int = 0
    size: int = 0
    parked: Parked | None = None
    settled: Heard | None = None

    def __str__(self) -> str:
        if self.life == "absent":
            return "absent"
        grown = f", {self.size} bytes" if self.size else ""
        at = f", parked in front of xcr0={self.parked.xcr0:#x} xfd={self.parked.xfd:#x}" if self.parked else ""
        registers = f"xcr0={self.xcr0:#x} xfd={self.xfd:#x} xfd_err={self.xfd_err:#x}"
        return f"{self.life}, {self.seq} events, {registers}{grown}{at}"


def missing(state: State, xcr0: int, xfd: int) -> int:
    """What a container that is known lacks for these."""
    return xcr0 & ~xfd & DYNAMIC & ~state.xfeatures if state.xfeatures else 0


def agree(made: Heard, heard: Heard) -> bool:
    """Whether an outcome may be what was heard; what either leaves open fits anything."""
    if made.tag != heard.tag:
        return False
    values = made.value == heard.value or made.value is None or heard.value is None
    return values and (made.grown == heard.grown or -1 in (made.grown, heard.grown))
