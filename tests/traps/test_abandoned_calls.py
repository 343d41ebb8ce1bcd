"""A call that its client drops without cancelling is never collected: it lives on, on both sides, for ever.

Source: grpc/grpc#43462, since 1.83. Guard: whoever begins a call cancels it in a ``finally``; on the host a lease ends
Attach, the age of a stream ends every other, and a deadline ends what is unary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from fpstate.v1 import exit_pb2
from fpstate.v1.session_pb2_grpc import GuestSessionServiceStub

from fpstated.testing_host import host_on_a_thread
from guest_agent.aio import open_async_session
from guest_agent.attachment import Attachment
from guest_agent.directive import DirectiveListener
from guest_agent.opening import SessionKey
from guest_agent.session import open_session
from host_agent.service.clock import ManualClock
from host_agent.service.options import ServerOptions
from host_agent.service.server import HostServer
from host_agent.state import HostConfig
from tests.service.world import World, read
from tests.traps.bare import bare, until
from vmm_controller.config import ControllerConfig
from vmm_controller.controller import Controller

VCPU = "vms/a/vcpus/0"


@pytest.mark.asyncio
async def test_bare(tmp_path: Path, note: Callable[..., None]) -> None:
    """Five calls are begun and dropped."""

    async def drop(server: Any) -> None:  # noqa: ANN401
        await server.stream().read()

    async with bare(tmp_path) as server:
        for _ in range(5):
            await drop(server)
        await server.settle()
        alive = server.methods.under_way
        note("an abandoned call is never collected", there=alive > 0, how=f"{alive} of 5 alive")


# -- our clients cancel ------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_whoever_leaves_an_attachment_ends_it(world: World) -> None:
    """By a break out of the loop, by an exception in it, by being cancelled in it."""
    guest = await world.guest()
    attachments = world.server.agent.attachments
    async with grpc.aio.insecure_channel(world.server.address) as channel:
        stub: Any = GuestSessionServiceStub(channel)

        async def stay(then: Callable[[], object] | None) -> None:
            responses = Attachment(stub, SessionKey(guest.session, guest.epoch)).responses()
            try:
                async for _response in responses:
                    if then is not None:
                        then()
                        break
            finally:
                await responses.aclose()

        await stay(lambda: None)
        await until(attachments.empty.is_set)
        with pytest.raises(ZeroDivisionError):
            await stay(lambda: 1 // 0)
        await until(attachments.empty.is_set)
        staying = asyncio.ensure_future(stay(None))
        await until(lambda: not attachments.empty.is_set())
        staying.cancel()
        await until(attachments.empty.is_set)


@pytest.mark.asyncio
async def test_a_session_that_is_cancelled_leaves_no_stream(world: World) -> None:
    """Its block is left by the cancellation, and its stream with it."""
    await world.vm()

    async def stay() -> None:
        async with await open_async_session(world.server.address, vcpus=[VCPU]):
            await asyncio.Event().wait()

    staying = asyncio.ensure_future(stay())
    attachments = world.server.agent.attachments
    await until(lambda: not attachments.empty.is_set())
    staying.cancel()
    await until(attachments.empty.is_set)
    await until(lambda: not world.server.agent.state.sessions)
    assert world.server.limits.under_way(streams=True) == 0


def test_a_listener_that_is_closed_leaves_no_stream() -> None:
    """The blocking client's only stream."""
    with host_on_a_thread(HostConfig()) as server:
        server.call(lambda: server._host.make_vcpu(VCPU, permission=False))
        attachments = server._host._server.agent.attachments
        with open_session(server.address, vcpus=[VCPU]) as session:
            with DirectiveListener(session, lambda _directive: None, vcpus=[VCPU]):
                server.run(until(lambda: not attachments.empty.is_set()))
            server.run(until(attachments.empty.is_set))


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["stopped", "cancelled"])
async def test_a_controller_leaves_no_stream(world: World, how: str) -> None:
    """Neither one that is told to stop nor one whose task is cancelled."""
    watchers = world.server.agent.exit_watchers
    async with grpc.aio.insecure_channel(world.server.address) as channel:
        controller = Controller(channel, ControllerConfig())
        running = asyncio.ensure_future(controller.run())
        await until(lambda: controller.watching.is_set() and not watchers.empty.is_set())
        if how == "stopped":
            controller.stop()
        else:
            running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await until(watchers.empty.is_set)


# -- and the host ends what others leave -------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_an_abandoned_stream_ends_with_its_lease(world: World) -> None:
    """Nobody reads, nobody writes, nobody cancels: the lease ends it."""
    guest = await world.guest(lease_s=5)
    stream: Any = world.sessions.Attach()
    await stream.write(guest.hello())
    await read(stream)
    assert not world.server.agent.attachments.empty.is_set()
    abandoned = [stream]
    world.clock.advance(6)
    await until(world.server.agent.attachments.empty.is_set)
    await until(lambda: world.server.limits.under_way(streams=True) == 0)
    del abandoned


@pytest.mark.asyncio
async def test_an_abandoned_watch_ends_with_its_age(tmp_path: Path) -> None:
    """It has no lease, and ends nonetheless."""
    clock = ManualClock()
    options = ServerOptions(stream_max_age_s=100)
    async with (
        HostServer(HostConfig(), f"unix:{tmp_path}/s", options=options, clock=clock) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        world = World(server, clock, channel)
        abandoned = world.exits.WatchExits(exit_pb2.WatchExitsRequest())
        await abandoned.read()
        clock.advance(89)
        assert not server.agent.exit_watchers.empty.is_set()
        clock.advance(22)
        await until(server.agent.exit_watchers.empty.is_set)
        await until(lambda: server.limits.under_way(streams=True) == 0)
        del abandoned
