"""What README.md and docs/testing.md show runs, and says what they say."""

from __future__ import annotations

import re
from pathlib import Path

from tests.testing.suite import Suite, suite

pytest_plugins = ["pytester"]
__all__ = ["suite"]

ROOT = Path(__file__).parent.parent.parent


def blocks(page: str, heading: str) -> list[tuple[str, str]]:
    """The blocks of code below a heading of a page: language and text."""
    _, _, below = (ROOT / page).read_text().partition(f"\n{heading}\n")
    section = re.split(r"\n#+ ", below)[0]
    return re.findall(r"```(\w*)\n(.*?)```", section, re.DOTALL)


def test_the_readmes_tests_run_and_say_that(suite: Suite) -> None:
    """The first with its whole output, the second as it stands."""
    (_, first), (_, said), (_, second) = blocks("README.md", "## A test of yours")
    suite.write(first.removeprefix("import pytest\n\n\n"))
    assert suite.says("-v") == said
    suite.write(second)
    suite.run().assert_outcomes(passed=1)


def test_the_pages_failure_is_what_is_said(suite: Suite) -> None:
    """The test of the page, on the plan of the page, fails with the words of the page."""
    (_, plan), (_, test), (_, said) = blocks("docs/testing.md", "## What a failure looks like")
    (suite.path / "stuck.yaml").write_text(plan)
    suite.write(test.removeprefix("import pytest\n\n\n"))
    assert suite.says("--fault-shrink") == said


def test_the_pages_recipes_run(suite: Suite) -> None:
    """Each block of Python below "Recipes" is a test file that passes."""
    for nr, (language, text) in enumerate(blocks("docs/testing.md", "## Recipes")):
        assert language == "python"
        (suite.path / f"test_recipe_{nr}.py").write_text(text)
    ran = suite.run()
    assert ran.ret == 0
    assert ran.parseoutcomes()["passed"] >= 4
