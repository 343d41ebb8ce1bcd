"""A pytest plugin: ``python -m pytest -p tests.museum.plugin --mutant B42 tests/core`` runs on the mutated core."""

from __future__ import annotations

import pytest

from tests.museum.loader import install
from tests.museum.mutants import find


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--mutant NAME``."""
    parser.addoption("--mutant", default="", metavar="NAME", help="run on the core with this bug of docs/museum")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before any conftest, and so before any test, imports the core."""
    name = early_config.known_args_namespace.mutant
    if name:
        install(find(name))
