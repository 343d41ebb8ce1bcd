"""Closing a channel need not end a reader in another task.

Source: grpc/grpc#32005, open. Guard: a session ends its tasks and cancels its stream before it closes its channel, and
where its owner closes a channel under it, every wait fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from fpstate.v1 import host_pb2, host_pb2_grpc

from fpstated.testing_host import host_on_a_thread
from guest_agent.aio import open_async_session
from guest_agent.error import HostError
from guest_agent.session import open_session
from guest_agent.wait import SessionLost
from host_agent.state import HostConfig
from tests.service.world import World
from tests.traps.bare import TIMEOUT_S, bare, until
from vmm_controller.config import ControllerConfig
from vmm_controller.controller import Controller
from vmm_controller.error import CallError

VCPU = "vms/a/vcpus/0"


@pytest.mark.asyncio
async def test_bare(tmp_path: Path, note: Callable[..., None]) -> None:
    """One task iterates over a stream, another closes the channel."""
    async with bare(tmp_path) as server, grpc.aio.insecure_channel(server.address) as channel:
        begun = asyncio.Event()

        async def read_all() -> None:
            hold: Any = channel.unary_stream("/bare/Hold")
            async for _message in hold(b""):
                begun.set()

        reading = asyncio.ensure_future(read_all())
        await begun.wait()
        await asyncio.wait_for(channel.close(), TIMEOUT_S)
        await asyncio.wait({reading}, timeout=1.0)
        note("closing a channel leaves a reader in another task", there=not reading.done())
        reading.cancel()
        await asyncio.wait({reading})


@pytest.mark.asyncio
async def test_a_session_that_is_closed_ends_its_reader_and_its_waits(world: World) -> None:
    """Its tasks are gone, its stream is gone on the host, and whoever waits for an outcome hears why."""
    await world.vm()
    await world.fail_next_growth()
    before = asyncio.all_tasks()
    session = await open_async_session(world.server.address, vcpus=[VCPU])
    waiting = asyncio.ensure_future(session.vcpu(VCPU).xsetbv(0x602E7))
    await world.open_exit()
    await asyncio.wait_for(session.close(), TIMEOUT_S)
    with pytest.raises(SessionLost, match="closed by its owner"):
        await waiting
    await until(world.server.agent.attachments.empty.is_set)
    await until(lambda: not [task for task in asyncio.all_tasks() - before if "guest_agent" in repr(task.get_coro())])


@pytest.mark.asyncio
async def test_a_channel_that_its_owner_closes_ends_the_session(world: World) -> None:
    """The stream ends with it, and every wait fails at once: nothing hangs, nothing is tried for ever."""
    await world.vm()
    await world.fail_next_growth()
    channel = grpc.aio.insecure_channel(world.server.address)
    session = await open_async_session(channel, vcpus=[VCPU], reconnect_s=3600)
    port = session.vcpu(VCPU)
    waiting = asyncio.ensure_future(port.xsetbv(0x602E7))
    await world.open_exit()
    await asyncio.wait_for(channel.close(), TIMEOUT_S)
    for wait in (waiting, port.hlt()):
        with pytest.raises(SessionLost, match="its channel was closed"):
            await asyncio.wait_for(wait, TIMEOUT_S)
    await until(world.server.agent.attachments.empty.is_set)
    await asyncio.wait_for(session.close(), TIMEOUT_S)


def test_a_channel_that_its_owner_closes_ends_the_blocking_session() -> None:
    """The call that waits, and every later one."""
    with host_on_a_thread(HostConfig(faults=True)) as server, ThreadPoolExecutor() as pool:
        server.call(lambda: server._host.make_vcpu(VCPU, permission=True))
        server.fail_allocation()
        channel = grpc.insecure_channel(server.address)
        session = open_session(channel, vcpus=[VCPU], reconnect_s=3600)
        port = session.vcpu(VCPU)
        waiting = pool.submit(port.xsetbv, 0x602E7)
        server.exit_opened()
        channel.close()
        with pytest.raises(SessionLost, match="its channel was closed"):
            waiting.result(TIMEOUT_S)
        with pytest.raises(SessionLost, match="its channel was closed"):
            port.wait_pending()
        session.close()


@pytest.mark.asyncio
async def test_a_channel_that_its_owner_closes_ends_the_controller(world: World) -> None:
    """It says so: to go on without hearing of exits would be to decide none."""
    channel = grpc.aio.insecure_channel(world.server.address)
    controller = Controller(channel, ControllerConfig(lease_s=3600))
    running = asyncio.ensure_future(controller.run())
    await asyncio.wait_for(controller.watching.wait(), TIMEOUT_S)
    await until(lambda: not world.server.agent.exit_watchers.empty.is_set())
    await channel.close()
    with pytest.raises(CallError, match="the channel was closed by its owner"):
        await asyncio.wait_for(running, TIMEOUT_S)


@pytest.mark.asyncio
async def test_a_call_under_way_ends_with_its_channel(world: World) -> None:
    """AsyncHost.close() does not wait for it, and does not leave it."""
    from guest_agent.aio_host import AsyncHost

    await world.vm()
    host = AsyncHost(f"{world.server.address}")
    stub = host_pb2_grpc.HostServiceStub(host.channel)
    await stub.GetHostInfo(host_pb2.GetHostInfoRequest())
    hanging = asyncio.ensure_future(host.info())
    await asyncio.wait_for(host.close(), TIMEOUT_S)
    await asyncio.wait({hanging}, timeout=TIMEOUT_S)
    assert hanging.done()
    assert hanging.cancelled() or hanging.exception() is None or isinstance(hanging.exception(), HostError)
