"""A mutant as data: a name, where the bug comes from, and the change of source text that brings it back."""

from __future__ import annotations

import importlib.machinery
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = ROOT / "docs" / "museum"


class PatchError(Exception):
    """A patch whose old text is not in its module exactly once: the code has moved on, the mutant must follow."""


@dataclass(frozen=True, slots=True)
class Patch:
    """One change of one module: ``old``, which is there exactly once, becomes ``new``."""

    module: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Patched:
    """Modules with patches in them. ``id`` is what it is switched on by."""

    id: str
    #: What goes wrong, in a few words.
    title: str
    patches: tuple[Patch, ...]

    def modules(self) -> Iterator[str]:
        """The modules it changes, each once."""
        yield from dict.fromkeys(patch.module for patch in self.patches)

    def mutate(self, module: str, source: str) -> str:
        """The source text of ``module`` with this mutant's patches in it; ``PatchError`` where one does not fit."""
        for patch in self.patches:
            if patch.module == module:
                found = source.count(patch.old)
                if found != 1:
                    raise PatchError(f"{self.id}: {module} has {found} times, not once:\n{patch.old}")
                source = source.replace(patch.old, patch.new)
        return source


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant(Patched):
    """One bug of the catalogue; ``number`` orders it, and the title is its page's."""

    #: The fix in the kernel: subject, date, hash as far as known. Empty where the bug never was in a kernel.
    fix: str
    cve: str = ""
    #: The invariant or the rule that it breaks.
    breaks: str

    @property
    def number(self) -> int:
        """42 for B42."""
        return int(self.id[1:])

    @property
    def page(self) -> Path | None:
        """The page in docs/museum, found by its number; None while there is none."""
        return next(iter(sorted(PAGES.glob(f"B{self.number:02}-*.md"))), None)


def source_of(module: str) -> tuple[Path, str]:
    """The file of a module and its text, without importing it."""
    parent, _, _name = module.rpartition(".")
    folder = [str(ROOT.joinpath(*parent.split(".")))] if parent else [str(ROOT)]
    spec = importlib.machinery.PathFinder.find_spec(module, folder)
    if spec is None or spec.origin is None:
        raise PatchError(f"there is no module {module}")
    path = Path(spec.origin)
    return path, path.read_text(encoding="utf-8")
