"""One mutant, or the healthy core, in a process of its own: seeds of some plans in order, up to the first violation.

python -m tests.sim.museum.trial B42 0 30 PLAN...      prints one line of JSON a plan
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.museum.loader import install
from tests.museum.mutants import find
from tests.museum.trial import CONTROL
from tests.museum.watchdog import ends_within

#: A run takes some tens of milliseconds; what takes longer hangs.
_RUN_S = 30


def main(name: str, first: int, seeds: int, *plans: str) -> None:
    """Try one."""
    if name != CONTROL:
        install(find(name))
    for plan in plans:
        print(json.dumps({"mutant": name, "plan": Path(plan).stem, **search(Path(plan), first, seeds)}), flush=True)


def search(path: Path, first: int, seeds: int) -> dict[str, object]:
    """The first seed with a violation, what it was and at which step; or none. The core is imported no earlier."""
    from fault_lab.plan.load import load_plan
    from fault_lab.sim.run import simulate

    plan = load_plan(path.read_text(encoding="utf-8"), path.name)
    for seed in range(first, first + seeds):
        with ends_within(_RUN_S):
            result = simulate(plan, seed)
        if result.cut_short:
            return {"seed": seed, "check": "", "text": "the budget ended the run"}
        if result.violation is not None:
            found = result.violation
            return {"seed": seed, "check": found.check, "text": found.text, "step": found.step}
    return {}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
