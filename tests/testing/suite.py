"""A suite of somebody's, run in this process, and what it said without what is another each time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fault_lab.search import run as searches
from fault_lab.sim import as_test
from fpstated import testing_host
from fpstated.testing import marker, play, report, sim_world

#: A suite's own imports are forgotten when it is over: what must not be loaded twice is loaded before.
LOADED = (searches, as_test, testing_host, marker, play, report, sim_world)
STUCK = Path(__file__).parent.parent / "campaign" / "stuck.yaml"
_INI = """\
[pytest]
asyncio_mode = strict
asyncio_default_fixture_loop_scope = function
addopts = --strict-markers --strict-config -p no:cacheprovider -p no:hypothesispytest -p no:timeout {words}
"""


class Suite:
    """One test file, ``test_guest.py``, beside ``stuck.yaml``."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.configure("-p no:xdist")
        (self.path / "stuck.yaml").write_text(STUCK.read_text())

    def configure(self, words: str) -> None:
        """Write the ini file; pytest loads each plugin anew for each suite, so only what is needed."""
        (self.path / "pytest.ini").write_text(_INI.format(words=words))

    def write(self, text: str) -> None:
        """Write the test file; ``pytest`` is imported."""
        (self.path / "test_guest.py").write_text(f"import pytest\n\n{text}")

    def run(self, *words: str) -> pytest.RunResult:
        """Run it in this process."""
        return self.pytester.runpytest_inprocess(*words)

    def says(self, *words: str) -> str:
        """Run it, and return what it says behind the header."""
        return self.shown(self.run(*words).outlines)

    def shown(self, lines: list[str]) -> str:
        """Behind the header and before the short summary, with TMP for pytest's folder, and the last line's counts."""
        text = "\n".join(lines[:-1])
        _, _, text = re.sub(r"^(?:collecting \.\.\. )?collected .*$", "\f", text, flags=re.MULTILINE).partition("\f")
        text, _, _ = text.partition("=========================== short test summary info")
        text = re.sub(r"/\S*?/fault-artifacts", "TMP/fault-artifacts", text.strip())
        text = re.sub(r"^([=_-])\1+ (.*?) \1+$", r"\1\1 \2 \1\1", text, flags=re.MULTILINE)
        counts = re.sub(r"=+ (.*) in [0-9.]+s.*", r"\1", lines[-1])
        return "\n".join([*(line.rstrip() for line in text.splitlines()), counts, ""])


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Suite:
    """A suite in a folder of its own."""
    return Suite(pytester)
