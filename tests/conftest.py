"""What every test can use."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--rewrite``: scenario files take over what was printed."""
    parser.addoption("--rewrite", action="store_true", help="write what scenarios print into their files")


@pytest.fixture
def rewrite(pytestconfig: pytest.Config) -> bool:
    """Whether scenario files are to be rewritten."""
    return bool(pytestconfig.getoption("--rewrite"))
