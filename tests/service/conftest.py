"""A host with faults, every invariant checked, on a socket in the test's folder and a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest_asyncio

from host_agent.service.clock import ManualClock
from host_agent.service.server import HostServer
from host_agent.state import HostConfig
from tests.service.world import World


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
