"""The tables of the docs are what the code says."""

from __future__ import annotations

import re

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


def test_a_stale_table_is_found() -> None:
    """What stands between the lines does not matter; what stands around them stays."""
    text = "before\n<!-- generated: access-matrix -->\nold\n<!-- end -->\nafter\n"
    made = generated(text)
    assert made.startswith("before\n<!-- generated")
    assert made.endswith("<!-- end -->\nafter\n")
    assert "old\n" not in made
    assert generated(made) == made
