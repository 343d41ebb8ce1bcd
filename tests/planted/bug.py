"""A planted bug as data: what goes wrong, which checks speak of it, the plan that reaches it, the change of text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.museum.mutant import Patched
from tests.sim.museum.table import HERE as KERNEL_PLANS

#: By name: the plans of the control plane's bugs, and those of the kernel's.
PLANS: Final = {
    path.stem: path
    for folder in (Path(__file__).parent / "plans", KERNEL_PLANS)
    for path in sorted(folder.glob("*.yaml"))
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug(Patched):
    """One planted bug."""

    #: The checks any of which is right to find it.
    checks: frozenset[str]
    #: The plan in whose runs it is looked for, by its name in ``PLANS``.
    plan: str
