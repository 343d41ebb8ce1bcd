"""docs/suites.md names every row of the foreign suites once, and where it is held; the files name their sources."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Final

import pytest

from tests.scenarios.runner import FILES, FOLDER, name_of

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")

#: Every row of every table, as the page calls them.
ROWS: Final = {
    "amx_test": ["preconditions", *(f"step {nr}" for nr in range(1, 16)), "until 6.16", "in 2022"],
    "xcr0_cpuid_test": [
        "initial XCR0",
        "what is reported is consistent",
        "XCR0 = 1",
        "XCR0 = supported",
        "one unsupported bit more, for each",
        "without permission",
    ],
    "xss_msr_test": ["XSS at first", "XSS = 0", "each bit"],
    "state_test": [
        "every feature that is not dynamic is dirty",
        "BND1 through MPX",
        *(
            f"dummy vCPU {cpuid}, {bv}"
            for cpuid in ("before any CPUID", "with an empty CPUID")
            for bv in ("real XSTATE_BV", "all supported")
        ),
    ],
    "amx.c": [*"ABCDEFGHI", "allocation failure"],
    "xstate.c": [
        "ptrace: sw_reserved",
        "signal frame: magic1 and magic2",
        "signal frame: XSTATE_BV and data",
        "signal frame: what a handler wrote",
        "context switch of any feature",
    ],
    "xsave.c": [
        "OSXSAVE off",
        "no XSAVE in CPUID",
        "OSXSAVE on",
        "XCR0 = 1, 3, 7",
        "XCR0 = 0, 2, 4, 5",
        "index 1 to 63",
        "index 1 << i",
        "CR4 as it was",
    ],
    "Negative list": [
        "permission absent at KVM_SET_CPUID2",
        "allocation fails",
        "XFD = 1 << 17",
        "XFD = 1 << 18 with XCR0[18] = 0",
        "XCR0[18] under XFD[18], then XFD = 0",
        "allocation fails at XSETBV",
        "two requests before one swap",
        "a request pending at entry",
        "guest permission after the first vCPU",
        "#NM of CR0.TS",
        "tiles into a host without AMX",
        "an image cut to 4,096 bytes",
        "export of a confidential vCPU",
    ],
}
#: Folder, source file and revisions; every file of the folder names the file and one of them.
SOURCES: Final = {
    "kvm-selftests/amx_test": ("amx_test.c", "3611ca7c12b7|0383a8edef39|03ab8e6297ac"),
    "kvm-selftests/xcr0_cpuid_test": ("xcr0_cpuid_test.c", "1f2bbbbbda57"),
    "kvm-selftests/xss_msr_test": ("xss_msr_test.c", "b2128290c299"),
    "kvm-selftests/state_test": ("state_test.c", "2303ca26fbb0"),
    "selftests-x86/amx": ("amx.c", "0f6d91a327db"),
    "selftests-x86/xstate": ("xstate.c", "10d8a204c500"),
    "kvm-unit-tests/xsave": ("xsave.c", "1da1819e49fc"),
    "negative": ("Negative list", "No suite upstream tests it"),
}
FOREIGN: Final = [path for path in FILES if path.parent != FOLDER]


def _sections() -> dict[str, list[list[str]]]:
    """The rows of the page's tables, by heading."""
    found: dict[str, list[list[str]]] = {}
    for section in PAGE.split("\n## ")[1:]:
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"
        ]
        found[section.partition("\n")[0]] = rows[2:]
    return found


def test_every_row_is_on_the_page_once() -> None:
    """In the order of its table, each with what must come of it."""
    sections = _sections()
    assert {suite: [row[0] for row in rows] for suite, rows in sections.items()} == ROWS
    assert all(len(row) == 3 and all(row) for rows in sections.values() for row in rows)


@pytest.mark.parametrize("suite", ROWS)
def test_what_a_row_points_to_exists(suite: str) -> None:
    """A scenario, or a test by its name."""
    for _row, _expects, held_by in _sections()[suite]:
        holders = re.findall(r"`([^`]+)`", held_by)
        assert holders
        for holder in holders:
            path, _, test = holder.partition("::")
            if test:
                module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
                assert callable(getattr(module, test))
            else:
                assert (FOLDER / path).is_file(), f"{suite}: {holder}"


def test_every_file_is_on_the_page() -> None:
    """No file of a suite holds rows that nobody could find from here."""
    assert [name_of(path) for path in FOREIGN if f"`{name_of(path)}.txt`" not in PAGE] == []


@pytest.mark.parametrize("path", FOREIGN, ids=name_of)
def test_a_file_names_its_source(path: Path) -> None:
    """The comment it opens with says which file of which suite, and at which revision."""
    source, revisions = SOURCES[name_of(path.parent / "x").rpartition("/")[0]]
    opening = path.read_text(encoding="utf-8").partition("\n\n")[0]
    assert source in opening
    assert re.search(revisions, opening)
