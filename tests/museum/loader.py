"""Applying a mutant: a meta path hook that compiles the mutated text of a module in place of the file's.

Neither the file nor its bytecode cache is touched: what is mutated lives and dies with the process.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType

from tests.museum.mutant import Patched, source_of


class _MutatedLoader(importlib.machinery.SourceFileLoader):
    """Loads one module from mutated text."""

    def __init__(self, fullname: str, path: str, mutant: Patched) -> None:
        super().__init__(fullname, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        """Compile the mutated text; the bytecode cache is neither read nor written."""
        _path, source = source_of(fullname)
        return compile(self._mutant.mutate(fullname, source), self.path, "exec", dont_inherit=True)


class MutantFinder:
    """First on ``sys.meta_path``: takes the modules its mutant changes, and leaves every other to whom it belongs."""

    def __init__(self, mutant: Patched) -> None:
        self.mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a module to be mutated; None for others."""
        if fullname not in self.mutant.modules():
            return None
        file, _source = source_of(fullname)
        loader = _MutatedLoader(fullname, str(file), self.mutant)
        return importlib.util.spec_from_file_location(fullname, file, loader=loader)


def install(mutant: Patched) -> None:
    """Mutate this process. Its modules must not have been imported yet: they would stay as they are."""
    early = [module for module in mutant.modules() if module in sys.modules]
    if early:
        raise RuntimeError(f"{mutant.id}: {', '.join(early)} was imported before the mutant was switched on")
    if active() is not None:
        raise RuntimeError(f"{mutant.id}: one mutant is on already")
    for module in mutant.modules():
        mutant.mutate(module, source_of(module)[1])  # a patch that does not fit is reported here, by itself
    sys.meta_path.insert(0, MutantFinder(mutant))


def active() -> Patched | None:
    """The mutant this process runs on; None for the healthy core."""
    return next((finder.mutant for finder in sys.meta_path if isinstance(finder, MutantFinder)), None)
