"""The museum itself: every mutant still fits the code, every page shows what it says, and the core is clean without.

Whether the suites notice every mutant is the long command, ``python -m tests.mutants``; here three of them prove that
the command works.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest

from tests.museum.loader import active, install
from tests.museum.mutant import PAGES, ROOT, Mutant, Patch, PatchError, source_of
from tests.museum.mutants import MUTANTS, find
from tests.museum.page import rewrite as rewrite_page
from tests.museum.page import shown_by
from tests.scenarios.runner import difference

EACH = pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
CATALOGUE = tuple(f"B{nr}" for nr in range(1, 47))


@EACH
def test_a_mutant_still_applies(mutant: Mutant) -> None:
    """Each old text is in its module exactly once, and what comes of it still is Python."""
    for module in mutant.modules():
        path, source = source_of(module)
        mutated = mutant.mutate(module, source)
        assert mutated != source
        compile(mutated, str(path), "exec")


@EACH
def test_a_page_says_what_the_catalogue_says(mutant: Mutant) -> None:
    """Title, fix, CVE and rule of the page are the catalogue's, which the commands print from."""
    page = mutant.page
    assert page is not None, f"{mutant.id} has no page"
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {mutant.id} {mutant.title}\n")
    for said in (mutant.fix, mutant.cve, mutant.breaks):
        assert said in text


@EACH
def test_what_a_page_shows_runs_on_the_healthy_core(mutant: Mutant, rewrite: bool) -> None:
    """What the page says is what the core does; that it deviates with the mutant, the mutants' run checks."""
    page = mutant.page
    assert page is not None
    shown = shown_by(page)
    printed = shown.printed()
    if printed == shown.text:
        return
    if not rewrite:
        here = f"tests/museum -k {mutant.id}"
        pytest.fail(difference(page, shown.text, printed, rewrite=here), pytrace=False)
    rewrite_page(page, printed)


def test_every_bug_of_the_catalogue_has_its_row() -> None:
    """docs/museum/README.md names B1 to B46, each once: with its page, or with the reason why it cannot occur here."""
    text = (PAGES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:\[(B\d+)\]\((\S+)\)|(B\d+)) \| .+ \| (.+) \|$", text, re.MULTILINE)
    assert Counter(linked or plain for linked, _page, plain, _last in rows) == Counter(CATALOGUE)
    for linked, page, _plain, last in rows:
        assert bool(linked) == (last == "mutant")
        assert not linked or MUTANTS[linked].page == PAGES / page
    assert {linked for linked, _page, _plain, _last in rows if linked} == set(MUTANTS)


def test_nothing_is_patched_unless_somebody_asks() -> None:
    """This process runs on the healthy core, and no code of ours but the museum's knows that there is another."""
    assert active() is None
    for folder in ("fpu_core", "host_agent", "fault_lab", "vmm_controller", "guest_agent", "fpstated"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "mutant" not in path.read_text(encoding="utf-8"), path


def test_a_core_that_was_imported_before_is_not_taken_for_mutated() -> None:
    """Switched on too late, a mutant would change nothing and every suite would pass: that is an error."""
    with pytest.raises(RuntimeError, match="was imported before the mutant was switched on"):
        install(MUTANTS["B42"])


def test_a_patch_that_does_not_fit_says_so() -> None:
    """Text that is not there, or is there twice, names the mutant, the module and the text."""
    for old, times in (("no such text", 0), ("import", 2)):
        lost = Mutant(id="B0", title="", fix="", breaks="", patches=(Patch("fpu_core.task", old, ""),))
        with pytest.raises(PatchError, match=rf"B0: fpu_core.task has {times} times, not once"):
            lost.mutate("fpu_core.task", "import a\nimport b\n")


def test_an_unknown_name_lists_the_known() -> None:
    """A typing error is no pass."""
    with pytest.raises(KeyError, match="no mutant 'B0'; there are B1, "):
        find("B0")
    done = _mutants("B0")
    assert done.returncode == 2
    assert "no B0; there are B1, " in done.stderr


def test_the_plugin_runs_pytest_on_the_mutated_core() -> None:
    """With ``--mutant`` an ordinary test fails that passes without."""
    test = "tests/core/test_task.py::test_exec_of_a_task_that_ran_elsewhere"
    for name, status in (("", 0), ("B4", 1)):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.museum.plugin", f"--mutant={name}", test]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == status


@pytest.mark.timeout(600)
def test_three_mutants_are_caught() -> None:
    """The command in short: the control passes, and each of three is caught by the invariant of its page."""
    done = _mutants("B6", "B18", "B45", "--quick")
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[0], lines[-1]) == (0, "control: passed", "mutants: 3, caught: 3"), done.stdout
    for line, name in zip(lines[1:-1], ("B6", "B18", "B45"), strict=True):
        assert re.fullmatch(rf"{name} +caught by {MUTANTS[name].breaks}  in .+  \d+ steps .+ s", line), line


def _mutants(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.mutants", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
