"""The catalogue: every mutant there is, by its id. Data only; nothing here imports the core."""

from __future__ import annotations

from typing import Final

from tests.museum.exhibits import cpus, images, kvm, permissions, restores, signals, tasks, uabi
from tests.museum.mutant import Mutant

_ROOMS: Final = (cpus, images, kvm, permissions, restores, signals, tasks, uabi)

MUTANTS: Final[dict[str, Mutant]] = {
    mutant.id: mutant
    for mutant in sorted((mutant for room in _ROOMS for mutant in room.EXHIBITS), key=lambda mutant: mutant.number)
}
assert len(MUTANTS) == sum(len(room.EXHIBITS) for room in _ROOMS), "two mutants have one id"


def find(name: str) -> Mutant:
    """The mutant of that id; ``KeyError`` lists the ones there are."""
    found = MUTANTS.get(name.upper())
    if found is None:
        raise KeyError(f"no mutant {name!r}; there are {', '.join(MUTANTS)}")
    return found
