"""The kernel's own bugs: every mutant of docs/museum, in the runs of tests/sim/museum; and two like them."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Patch
from tests.museum.mutants import MUTANTS
from tests.planted.bug import Bug
from tests.sim.museum.table import SHOWN

_LIKE_THEM: Final = (
    Bug(
        id="spoilt-frame-taken",
        title="sigreturn from a frame that cannot be restored clears the registers and tells nobody",
        checks=frozenset({"sigreturn-brings-back"}),
        plan="tasks",
        patches=(
            Patch(
                "fpu_core.sigframe",
                "        return True\n    fpu_clear_user_states(fpu)\n    return False\n",
                "        return True\n    fpu_clear_user_states(fpu)\n    return True\n",
            ),
        ),
    ),
    Bug(
        id="restored-from-elsewhere",
        title="KVM_SET_XSAVE looks for components where a compacted image has them",
        checks=frozenset({"restore-is-what-was-saved"}),
        plan="state",
        patches=(
            Patch(
                "fpu_core.uabi",
                "    standard = config.table.offsets(bv, compacted=False)\n    image =",
                "    standard = config.table.offsets(bv, compacted=True)\n    image =",
            ),
        ),
    ),
)

BUGS: Final = (
    *_LIKE_THEM,
    *(
        Bug(
            id=each.id,
            title=each.title,
            checks=SHOWN[each.id].checks,
            plan=SHOWN[each.id].plan,
            patches=each.patches,
        )
        for each in MUTANTS.values()
    ),
)
