"""A host with faults, every invariant checked, on a socket in the test's folder and a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NoReturn

import grpc
import pytest
import pytest_asyncio

from host_agent.service import interceptor
from host_agent.service.clock import ManualClock
from host_agent.service.errors import failure_of
from host_agent.service.layers import Context
from host_agent.service.server import HostServer
from host_agent.service.trace_layer import current_call
from host_agent.state import HostConfig
from tests.service.world import World
from tools.error_table import COMMON, reasons_by_method


@pytest.fixture(autouse=True)
def refusals(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Every refusal of a call that a test meets, (method, reason), is one that docs/errors.md promises."""
    met: list[tuple[str, str]] = []
    abort = interceptor._abort

    async def noting(context: Context, error: Exception) -> NoReturn:
        call, failure = current_call.get(), failure_of(error)
        if call is not None and failure is not None:
            met.append((call[0].path, failure.reason))
        await abort(context, error)

    monkeypatch.setattr(interceptor, "_abort", noting)
    yield met
    promised = reasons_by_method()
    assert [each for each in met if each[1] not in (*promised.get(each[0], ()), *COMMON)] == []


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A running host and stubs to talk to it."""
    clock = ManualClock()
    config = HostConfig(host="test-host", boot_id="test-boot", faults=True, check_invariants=True)
    async with (
        HostServer(config, f"unix:{tmp_path}/host.sock", clock=clock, bookmark_interval_s=0.05) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield World(server, clock, channel)
