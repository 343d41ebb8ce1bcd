"""The pytest plugin of the fault lab: it is there wherever fpstated is installed, and loads what a test asks for.

    @pytest.mark.fpstate_faults(plan="growth-fails-once", seeds="1..20")
    def test_guests_come_to_their_end(fpstate_run):
        assert fpstate_run.fired

| fixture | what it is | module |
|---|---|---|
| fpstate_run | a finished run of the marker's plan in the simulated world: one test a seed | runs |
| fpstate_runs | the runs of a search, or of all seeds, one after the other in one test | runs |
| fpstate_world | call it with a plan, or with none and build one: a simulated world to step through | world |
| fpstate_history | the records of the run, or of the world, of this test | world |
| fpstate_cluster | call it with a plan: its hosts and controllers for real, in this process or as processes | cluster |
| fpstate_faults | arm faults at the host under test; they are to fire | faults |
| fpstated_host, fpstated_vcpu, ... | a host agent in this process | host |
| aio_fpstated_host, ... | the same on the test's event loop | aio |

Options, marker and recipes: docs/testing.md. The line ``pytest_plugins = ["fpstated.testing"]`` is not needed, and does
no harm: the entry point has the module's own name, by which pytest knows that it is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any


pytest_plugins = [f"fpstated.testing.{name}" for name in ("host", "aio", "runs", "world", "faults", "cluster")]

#: What tests import from here, besides what pytest does: loaded when somebody wants one.
__all__ = [
    "AsyncHostUnderTest",
    "FaultRun",
    "FaultRuns",
    "HostUnderTest",
    "ManualClock",
    "SimWorld",
    "async_host",
    "host_on_a_thread",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- whatever has the name
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import fpstated.testing.names as found

    return getattr(found, name)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options --fault-*, and what of them may stand in an ini file."""
    from fpstated.testing.options import add_options

    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, and draw the seed where one is to be drawn."""
    from fpstated.testing.options import MARKER, settle_seed

    config.addinivalue_line("markers", MARKER)
    settle_seed(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401 -- xdist's WorkerController
    """A worker of xdist is about to start: it has the session's seed."""
    from fpstated.testing.options import tell_worker

    tell_worker(node.config, node.workerinput)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """The seed of this session, where one was given or drawn."""
    from fpstated.testing.options import header

    return header(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A marked test once a seed, or once with all runs."""
    if metafunc.definition.get_closest_marker("fpstate_faults") or _asks_for_runs(metafunc):
        from fpstated.testing.marker import parametrize

        parametrize(metafunc)


def _asks_for_runs(metafunc: pytest.Metafunc) -> bool:
    return any(name in metafunc.fixturenames for name in ("fpstate_run", "fpstate_runs"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """A run that violates a check fails its test before the test's own lines are reached."""
    if "fpstate_run" in getattr(item, "funcargs", {}):
        item.funcargs["fpstate_run"].judge()  # type: ignore[attr-defined] # a function has them


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test's runs came to, and for one that failed how to repeat it and where everything is."""
    report = yield
    from fpstated.testing.options import RAN, WORLDS

    if report.when == "call" and (RAN in item.stash or WORLDS in item.stash):
        from fpstated.testing.report import note

        note(item, report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With -v what all runs came to; always what never came about."""
    if any(hasattr(report, "fpstate") for reports in terminalreporter.stats.values() for report in reports):
        from fpstated.testing.report import summary

        summary(terminalreporter)
