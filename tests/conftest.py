"""What every test can use."""

from __future__ import annotations

import itertools
import signal

import pytest

_counter = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--rewrite``: scenario files take over what was printed."""
    parser.addoption("--rewrite", action="store_true", help="write what scenarios print into their files")


def pytest_configure() -> None:
    """What a shell runs in the background ignores SIGINT, and so would all that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _state_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that a test starts keeps its state where no other test and no person does."""
    monkeypatch.setenv("XDG_STATE_HOME", f"{tmp_path_factory.getbasetemp()}/state-{next(_counter)}")
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)


@pytest.fixture
def rewrite(pytestconfig: pytest.Config) -> bool:
    """Whether scenario files are to be rewritten."""
    return bool(pytestconfig.getoption("--rewrite"))
