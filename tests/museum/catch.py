"""What a suite says when it fails: by which invariant or check, where, and after how many steps."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fpu_core.invariants import INVARIANTS as CORE_INVARIANTS
from host_agent.invariants import INVARIANTS as HOST_INVARIANTS

INVARIANT_NAMES = frozenset(
    {each.__name__ for each in (*CORE_INVARIANTS, *HOST_INVARIANTS)} | {"permissions_only_grow"}
)


@dataclass(frozen=True, slots=True)
class Catch:
    """One failure. ``steps`` is the length of the counterexample, None where a test is not made of steps."""

    #: What failed: a scenario, a test, a property machine, the mutant's own page.
    where: str
    #: The invariant that was violated, empty where none was named.
    invariant: str
    #: The failure in one line.
    text: str
    steps: int | None = None

    @property
    def by(self) -> str:
        """The invariant or, where none was named, the check that failed."""
        return self.invariant or self.where


def caught(where: str, failure: str, steps: int | None = None) -> Catch:
    """A failure of ``where``, whose text may name an invariant."""
    named = next((word for word in re.findall(r"(\w+): ", failure) if word in INVARIANT_NAMES), "")
    lines = [line.strip() for line in failure.splitlines() if line.strip()]
    return Catch(where, named, lines[0] if lines else "", steps)
