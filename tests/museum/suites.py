"""The ordinary suites, run in this process against whatever core it has: scenarios, tests, property machines.

The fast ones come first. Scenarios run whole, the tests stop at the first failure, the machines draw from a fixed seed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.core.test_state_machine import CoreMachine
from tests.museum.catch import Catch, caught
from tests.museum.deviation import deviation
from tests.museum.mutant import ROOT
from tests.scenarios.runner import FILES, name_of
from tests.test_machine_properties import HostRules

#: Ordinary tests of the core, of KVM, and of both against recorded kernels.
TESTS: Final = (
    "tests/core",
    "tests/kvm",
    "tests/test_kvm_parts.py",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_differential*.py")),
)
#: The property machines are run beside them, with settings of their own.
_MACHINES: Final = {"core machine": CoreMachine, "host machine": HostRules}
#: What the machines do by themselves, after every rule and at the end.
_NO_RULES: Final = {"everything_holds", "teardown"}
_ELSEWHERE: Final = tuple(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/core/test_state_machine*.py"))


class BrokenMutantError(Exception):
    """A mutant that cannot even be imported, or that a test file cannot: it shows nothing."""


def scenarios() -> Iterator[Catch]:
    """Every scenario that deviates."""
    for path in FILES:
        found = deviation(path.read_text(encoding="utf-8"))
        if found is not None:
            yield caught(f"scenario {name_of(path)}", found.text, found.steps)


class _FirstFailure:
    """A pytest plugin that remembers what failed."""

    def __init__(self) -> None:
        self.failed: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test, or its set-up, failed."""
        if report.failed:
            self.failed.append(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be collected says nothing about the mutant."""
        if report.failed:
            raise BrokenMutantError(f"{report.nodeid}: {report.longreprtext}")


def tests() -> Iterator[Catch]:
    """The first ordinary test that fails."""
    seen = _FirstFailure()
    ignored = [f"--ignore={path}" for path in _ELSEWHERE]
    quiet = ["-q", "--timeout", "30", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    arguments = ["-x", *quiet, "--rootdir", str(ROOT), *ignored, *TESTS]
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(io.StringIO()):
        pytest.main(arguments, plugins=[seen])
    for report in seen.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        yield caught(report.nodeid, crash.message if crash is not None else report.longreprtext)


def machines(*, long: bool) -> Iterator[Catch]:
    """The property machines, shrunken; ``long`` looks as long as ``make test`` does."""
    bounds = settings(
        max_examples=350 if long else 100,
        stateful_step_count=60 if long else 40,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    for name, machine in _MACHINES.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                run_state_machine_as_test(machine, settings=bounds)
        except Exception as error:  # noqa: BLE001 -- whatever a mutant raises is the catch
            yield caught(name, f"{type(error).__name__}: {error}", _program_steps(error))


def _program_steps(error: Exception) -> int | None:
    """How many rules the shrunken program has, as Hypothesis prints it in the notes of the error."""
    lines = [line for note in getattr(error, "__notes__", []) for line in note.splitlines()]
    calls = [line.removeprefix("state.").partition("(")[0] for line in lines if line.startswith("state.")]
    return len([call for call in calls if call not in _NO_RULES]) or None
