"""A host to guard, and a note of which traps are still there: news of gRPC, and never a failure."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from host_agent.service.clock import ManualClock
from host_agent.service.server import HostServer
from host_agent.state import HostConfig
from tests.service.world import World

_seen: dict[str, str] = {}


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Call it with a trap's name and whether it is there: said at the end of the run, and in the report."""

    def noted(trap: str, *, there: bool, how: str = "") -> None:
        _seen[trap] = f"{'still there' if there else 'not seen'}{f' ({how})' if how else ''}"
        record_property("trap", f"{trap}: {_seen[trap]}")

    return noted


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line a trap."""
    if _seen:
        terminalreporter.section(f"traps of grpcio {grpc.__version__}, without our guards")
        for trap, what in sorted(_seen.items()):
            terminalreporter.line(f"{trap}: {what}")


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A running host on a clock that the test moves, and stubs to talk to it."""
    clock = ManualClock()
    config = HostConfig(host="test-host", boot_id="test-boot", faults=True, check_invariants=True)
    async with (
        HostServer(config, f"unix:{tmp_path}/host.sock", clock=clock) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield World(server, clock, channel)
