"""A planted bug as data: what goes wrong, which checks speak of it, the plan that reaches it, and the change of text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.museum.mutant import Patched

PLANS: Final = Path(__file__).parent / "plans"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug(Patched):
    """One bug of the control plane."""

    #: The checks any of which is right to find it.
    checks: frozenset[str]
    #: The plan in whose runs it is looked for: a file of ``plans``, without its ending.
    plan: str
