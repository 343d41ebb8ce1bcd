"""What came of a guest's run, real or scripted: what the guest said, and how it ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Mark(enum.Enum):
    """What a guest says, by its letter; beside each the meaning of the value that comes with it."""

    BOOTED = "B"  # seed
    XCR0_WRITTEN = "x"  # XCR0 as the guest now believes it
    XFD_ARMED = "A"  # XFD
    DEVICE_NOT_AVAILABLE = "N"  # XFD_ERR as the #NM handler read it
    GROWN = "G"  # XCR0 or XFD, whichever write it was that made the tiles usable
    REFUSED = "R"  # XCR0 refused, or RIP of the tile instruction given up after the refused XFD write
    VECTORS_INTACT = "v"  # bytes of vector registers compared
    VERIFIED = "V"  # bytes of tiles compared
    MISMATCH = "X"  # guest address just behind the first difference; in a script, its line
    WITHOUT_TILES = "W"  # 0
    SPINNING = "S"  # 0
    FAULT = "F"  # vector of an exception the program has no answer to
    FAULT_RIP = "@"  # RIP of that exception; in a script, its line


class Outcome(enum.Enum):
    """How a run ended."""

    VERIFIED = "verified"  # the tiles were used, and read back as they were loaded
    REFUSED = "refused"  # XCR0 or XFD was refused; the guest lived on without tiles and halted in order
    HALTED = "halted"  # a script came to its end and said none of the above
    MISMATCH = "mismatch"  # a byte read back was not the byte loaded
    FAULTED = "faulted"  # an exception the program has no answer to; the marks FAULT and FAULT_RIP tell which
    STOPPED = "stopped"  # the host killed, reset or moved the vCPU, or somebody interrupted the run


@dataclass(frozen=True, slots=True)
class GuestMark:
    """One thing the guest said: the letter and a 64-bit value."""

    mark: Mark
    value: int

    def __str__(self) -> str:
        return f"{self.mark.value} {self.mark.name} 0x{self.value:x}"


def said(marks: tuple[GuestMark, ...]) -> str:
    """Return the letters alone, in order: ``"BxAxNGvV"``."""
    return "".join(mark.mark.value for mark in marks)


_ENDINGS = {
    Mark.FAULT: Outcome.FAULTED,
    Mark.MISMATCH: Outcome.MISMATCH,
    Mark.REFUSED: Outcome.REFUSED,
    Mark.VERIFIED: Outcome.VERIFIED,
}


def halted_outcome(marks: tuple[GuestMark, ...]) -> Outcome | None:
    """Tell from its marks how a guest that executed HLT has ended; None if it never said."""
    letters = {mark.mark for mark in marks}
    return next((outcome for mark, outcome in _ENDINGS.items() if mark in letters), None)
