"""The kernel's own bugs: every mutant of docs/museum, in the runs of tests/sim/museum that show it."""

from __future__ import annotations

from typing import Final

from tests.museum.mutants import MUTANTS
from tests.planted.bug import Bug
from tests.sim.museum.table import SHOWN

BUGS: Final = tuple(
    Bug(
        id=each.id,
        title=each.title,
        checks=SHOWN[each.id].checks,
        plan=SHOWN[each.id].plan,
        patches=each.patches,
    )
    for each in MUTANTS.values()
)
