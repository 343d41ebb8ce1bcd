"""One mutant, or the healthy core, before every suite, in a process of its own.

python -m tests.museum.trial B42 [--quick]      prints one line of JSON
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass

from tests.museum.loader import install
from tests.museum.mutant import Mutant, PatchError
from tests.museum.mutants import find

CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant; ``error`` is why it could not be tried."""

    name: str
    #: The invariant or, where none was named, the check; empty where nothing noticed.
    by: str = ""
    where: str = ""
    text: str = ""
    #: The length of the smallest counterexample.
    steps: int | None = None
    #: Commands of the page's own scenario up to its deviation; None where it runs as if nothing were wrong.
    page_steps: int | None = None
    error: str = ""

    @property
    def caught(self) -> bool:
        """An ordinary suite noticed, and the page shows it."""
        return bool(self.by) and self.page_steps is not None and not self.error


def main(argv: list[str] | None = None) -> int:
    """Try one; the verdict is the last line."""
    parser = argparse.ArgumentParser(prog="python -m tests.museum.trial", description=__doc__)
    parser.add_argument("name", help=f"a mutant of the catalogue, or {CONTROL!r} for the healthy core")
    parser.add_argument("--quick", action="store_true", help="no property machines")
    args = parser.parse_args(argv)
    mutant = None if args.name == CONTROL else find(args.name)
    try:
        if mutant is not None:
            install(mutant)
        verdict = try_suites(args.name, mutant, quick=args.quick)
    except (PatchError, ValueError, ImportError) as error:
        verdict = Verdict(args.name, error=f"{type(error).__name__}: {error}")
    print(json.dumps(dataclasses.asdict(verdict)))
    return 0


def try_suites(name: str, mutant: Mutant | None, *, quick: bool) -> Verdict:
    """Run what there is, the fast suites first. They import the core, so they are imported after the mutant is on."""
    from tests.museum import suites
    from tests.museum.page import shown_by

    page = mutant.page if mutant is not None else None
    shown = shown_by(page).deviation() if page is not None else None
    catches = [*suites.scenarios(), *suites.tests()]
    if not quick and not any(each.invariant for each in catches):
        catches += suites.machines(long=not catches)
    if not catches:
        return Verdict(name, page_steps=shown.steps if shown else None)
    best = next((each for each in catches if each.invariant), catches[0])
    lengths = [each.steps for each in catches if each.steps is not None] + ([shown.steps] if shown else [])
    return Verdict(
        name,
        by=best.by,
        where=best.where,
        text=best.text,
        steps=min(lengths, default=None),
        page_steps=shown.steps if shown else None,
    )


if __name__ == "__main__":
    sys.exit(main())
