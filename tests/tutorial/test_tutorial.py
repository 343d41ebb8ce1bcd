"""The tutorial shows what its commands show: every command is typed, in order, in one folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.tutorial.transcript import TUTORIAL, Shown, chapters, pictures, played


@pytest.mark.timeout(900)
def test_every_command_shows_what_the_tutorial_says(tmp_path: Path) -> None:
    """All chapters, as a newcomer goes through them; ``python -m tests.tutorial`` writes down what is shown now."""
    assert shutil.which("bash"), "commands are typed into bash"
    typed = 0
    for chapter in chapters():
        text = chapter.read_text(encoding="utf-8")
        for shown, said in played(text, tmp_path):
            assert shown.fits(said), f"{chapter.name}: $ {shown.command}\nshown:\n{shown.text}now:\n{said}"
            typed += 1
        for file, name in pictures(text):
            assert file.read_bytes() == (tmp_path / name).read_bytes(), f"{chapter.name}: {file.name} is another now"
    assert typed > 25


def test_the_index_has_every_chapter() -> None:
    """In their order, and every picture belongs to one of them and is small."""
    index = re.findall(r"\]\((\d\d-[\w-]+\.md)\)", (TUTORIAL / "README.md").read_text(encoding="utf-8"))
    assert index == [chapter.name for chapter in chapters()]
    used = {file for chapter in chapters() for file, _ in pictures(chapter.read_text(encoding="utf-8"))}
    assert used == set((TUTORIAL / "pictures").iterdir())
    assert all(file.stat().st_size < 60_000 for file in used)


def test_dots_stand_for_anything() -> None:
    """Within a line and for whole lines; everything else is what it is."""
    shown = Shown("x", "live: ... records\n...\nend\n")
    assert shown.fits("live: 12 records\na\nb\nend\n")
    assert shown.fits("live: 12 records\nend\n")
    assert not shown.fits("live: 12 record\nend\n")
    assert not shown.fits("live: 12 records\n")
    assert not Shown("x", "1.5\n").fits("125\n")
