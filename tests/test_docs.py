"""The tables of the docs are what the code says."""

from __future__ import annotations

import re

import pytest

from tools.gen_docs import DOCS, TABLES, generated, stale


def test_no_table_is_stale() -> None:
    """`python -m tools.gen_docs` would change nothing."""
    assert stale() == []


def test_every_table_is_shown_somewhere() -> None:
    """A table that the code makes stands in the docs, once."""
    shown = [
        name for path in DOCS.glob("*.md") for name in re.findall(r"<!-- generated: ([a-z-]+) -->", path.read_text())
    ]
    assert sorted(shown) == sorted(TABLES)


@pytest.mark.parametrize("page", ["traps.md", "sessions.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    """Files by their paths; tests by their names, in a file that stands before them in the same cell."""
    cells = [cell for line in (DOCS / page).read_text().splitlines() for cell in line.split("|")]
    named = [(re.findall(r"`(tests/[\w/]+\.py)`", cell), re.findall(r"`(test_\w+)`", cell)) for cell in cells]
    assert sum(len(files) for files, _ in named) >= 10
    for files, tests in named:
        sources = [(DOCS.parent / file).read_text() for file in files]
        missing = [test for test in tests if not any(f"def {test}(" in source for source in sources)]
        assert missing == []


def test_a_stale_table_is_found() -> None:
    """What stands between the lines does not matter; what stands around them stays."""
    text = "before\n<!-- generated: access-matrix -->\nold\n<!-- end -->\nafter\n"
    made = generated(text)
    assert made.startswith("before\n<!-- generated")
    assert made.endswith("<!-- end -->\nafter\n")
    assert "old\n" not in made
    assert generated(made) == made
