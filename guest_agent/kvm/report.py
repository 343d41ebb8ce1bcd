"""What came of a run of the real guest: what it said on its port, how it ended, and what the VMM saw of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from guest_agent.report import GuestMark, Outcome, said


@dataclass(frozen=True, slots=True)
class GuestReport:
    """A finished run.

    Attributes:
        outcome: how it ended.
        reason: why it stopped (the Stop's reason, or ``"kicked"``); empty unless STOPPED.
        marks: everything the guest said, in order.
        exits: number of KVM exits by KVM's name of the reason (``"KVM_EXIT_X86_WRMSR"``).
        tiles: the bytes TILESTORED wrote last, 8 tiles of 1,024 bytes; all zero where it never ran.
        rip: where the guest stood at its last exit.
    """

    outcome: Outcome
    reason: str
    marks: tuple[GuestMark, ...]
    exits: Mapping[str, int]
    tiles: bytes
    rip: int

    @property
    def said(self) -> str:
        """The letters alone, in order: ``"BxAxNGvV"``."""
        return said(self.marks)
