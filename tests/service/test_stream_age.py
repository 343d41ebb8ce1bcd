"""Streams have an age, by the host's clock; whoever had one comes back and has lost nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from fpstate.fault.v1 import fault_pb2
from fpstate.v1 import event_pb2, exit_pb2, host_pb2, watch_pb2

from guest_agent.aio import open_async_session
from guest_agent.outcome import Done
from host_agent.service.access.matrix import MATRIX
from host_agent.service.clock import ManualClock
from host_agent.service.options import ServerOptions
from host_agent.service.server import HostServer
from host_agent.service.stream_age import StreamAge
from host_agent.state import HostConfig
from tests.service.calls import method_descriptor
from tests.service.world import TIMEOUT_S, World, error_info, read, settled
from vmm_controller.config import ControllerConfig
from vmm_controller.controller import Controller
from vmm_controller.policy import parse_policies

AGE_S = 1000.0


@pytest_asyncio.fixture
async def aged(tmp_path: Path) -> AsyncIterator[World]:
    """A host whose streams live a thousand seconds, a hundred more or less."""
    clock, options = ManualClock(), ServerOptions(stream_max_age_s=AGE_S)
    config = HostConfig(host="test-host", faults=True, max_lease_ns=10**15)
    async with (
        HostServer(config, f"unix:{tmp_path}/s", options=options, clock=clock) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield World(server, clock, channel)


def test_ages_differ_by_a_tenth_each_way() -> None:
    """A warning some seconds before the end; and after the block neither."""
    clock, ends = ManualClock(), list[float]()
    left: list[float] = []
    for _ in range(200):
        began = clock.now_ns()
        with StreamAge(clock, 100).limit(lambda: ends.append(clock.now_ns()), warn=left.append):
            clock.advance(89)
            assert len(left) in (len(ends), len(ends) + 1)
            clock.advance(22)
        ends[-1] -= began
    assert len(ends) == len(left) == 200
    assert 90e9 <= min(ends) < 95e9
    assert 105e9 < max(ends) <= 110e9
    assert all(9 <= grace_s <= 10 for grace_s in left)
    with StreamAge(clock, 100).limit(lambda: ends.append(0)):
        pass
    clock.advance(1000)
    assert len(ends) == 200


def test_streams_may_live_for_ever() -> None:
    """Where the host was told so."""
    clock, ends = ManualClock(), []
    with StreamAge(clock, 0).limit(lambda: ends.append(0)):
        clock.advance(10**9)
    assert ends == []


@pytest.mark.asyncio
async def test_an_old_attachment_is_told_and_ends_well(aged: World) -> None:
    """DRAINING with no other target and the seconds that are left, then the end, with OK; the session goes on."""
    guest = await aged.guest(lease_s=10**6)
    stream: Any = aged.sessions.Attach()
    await stream.write(guest.hello())
    await read(stream)
    aged.clock.advance(0.88 * AGE_S)
    await stream.write(guest.batch(guest.event(hlt=event_pb2.Hlt())))
    assert (await read(stream)).outcomes.outcomes[0].HasField("done")
    aged.clock.advance(0.23 * AGE_S)
    draining = (await read(stream)).draining
    assert draining.resume_target == ""
    assert draining.grace.ToSeconds() == 10
    assert await asyncio.wait_for(stream.read(), TIMEOUT_S) is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK
    again: Any = aged.sessions.Attach()
    await again.write(guest.hello())
    assert (await read(again)).attached.vcpus[0].next_seq == 2
    again.cancel()


@pytest.mark.asyncio
async def test_where_a_drain_has_sent_a_client_it_goes(aged: World) -> None:
    """An age that comes within the grace says the same target again, and not to come back here."""
    guest = await aged.guest(lease_s=10**6)
    stream: Any = aged.sessions.Attach()
    await stream.write(guest.hello())
    await read(stream)
    drain = host_pb2.DrainHostRequest(resume_target="unix:/elsewhere")
    drain.grace.seconds = 3600
    await aged.hosts.DrainHost(drain)
    aged.clock.advance(1.1 * AGE_S)
    told = [(await read(stream)).draining for _ in range(2)]
    assert [each.resume_target for each in told] == ["unix:/elsewhere"] * 2
    assert told[0].grace.seconds == 3600
    assert told[1].grace.ToSeconds() == 10
    assert await asyncio.wait_for(stream.read(), TIMEOUT_S) is grpc.aio.EOF


@pytest.mark.asyncio
async def test_an_old_watch_ends_well_and_says_from_where_to_go_on(aged: World) -> None:
    """What was raised meanwhile is read first; a watch from the last revision misses nothing."""
    watch = aged.exits.WatchExits(exit_pb2.WatchExitsRequest())
    await watch.read()
    guest = await aged.guest(lease_s=10**6)
    await aged.fail_next_growth()
    await guest.submit(guest.enable_tiles())
    aged.clock.advance(1.1 * AGE_S)
    heard: list[exit_pb2.WatchExitsResponse] = []
    while isinstance(message := await asyncio.wait_for(watch.read(), TIMEOUT_S), exit_pb2.WatchExitsResponse):
        heard.append(message)
    assert await watch.code() is grpc.StatusCode.OK
    assert any(message.HasField("exit") for message in heard)
    again = aged.exits.WatchExits(exit_pb2.WatchExitsRequest(from_revision=heard[-1].header.revision))
    assert isinstance(await again.read(), exit_pb2.WatchExitsResponse)
    again.cancel()


@pytest.mark.asyncio
async def test_an_old_watch_of_changes_ends_well_and_another_goes_on(aged: World) -> None:
    """What had changed by then is read first."""
    watch: Any = aged.watches.Watch(watch_pb2.WatchRequest())
    await watch.read()
    await aged.vm("a")
    aged.clock.advance(1.1 * AGE_S)
    heard: list[watch_pb2.WatchResponse] = []
    while isinstance(message := await asyncio.wait_for(watch.read(), TIMEOUT_S), watch_pb2.WatchResponse):
        heard.append(message)
    assert await watch.code() is grpc.StatusCode.OK
    assert "vms/a" in {message.change.name for message in heard}
    again: Any = aged.watches.Watch(watch_pb2.WatchRequest(from_revision=heard[-1].header.revision))
    await aged.vm("b")
    news = await asyncio.wait_for(again.read(), TIMEOUT_S)
    assert news.change.name.startswith("vms/b")
    again.cancel()


@pytest.mark.asyncio
async def test_an_old_watch_of_faults_ends_well(aged: World) -> None:
    """Another begins with what is armed."""
    for _ in range(2):
        watch: Any = aged.faults.WatchFaults(fault_pb2.WatchFaultsRequest())
        await aged.fail_next_growth()
        await watch.read()
        aged.clock.advance(1.1 * AGE_S)
        while await asyncio.wait_for(watch.read(), TIMEOUT_S) is not grpc.aio.EOF:
            pass
        assert await watch.code() is grpc.StatusCode.OK


@pytest.mark.asyncio
async def test_a_guest_and_a_controller_outlive_their_streams(aged: World) -> None:
    """Three ages of both: the guest's event waits for its decision over all of them, and then happens once."""
    vcpu = f"{await aged.vm()}/vcpus/0"
    await aged.fail_next_growth()
    before = asyncio.all_tasks()
    async with grpc.aio.insecure_channel(aged.server.address) as channel:
        controller = Controller(channel, ControllerConfig(lease_s=3600, policies=parse_policies(["retry"])))
        running = asyncio.ensure_future(controller.run())
        await asyncio.wait_for(controller.watching.wait(), TIMEOUT_S)
        async with await open_async_session(aged.server.address, vcpus=[vcpu], lease_s=10**6) as session:
            port = session.vcpu(vcpu)
            await settled(lambda: session.attached)
            for _ in range(3):
                await _one_age(aged)
            assert isinstance(await asyncio.wait_for(port.xsetbv(0x602E7), TIMEOUT_S), Done)
            assert port.next_seq == 2
            assert len(_writers(before)) == 1, "gRPC's own task that writes a stream ends with the stream"
        await settled(lambda: not _writers(before))
        controller.stop()
        await running


async def _one_age(aged: World) -> None:
    """Let an age go by, and wait until the attachment and the watcher are other ones."""
    agent = aged.server.agent
    (attached,), (watcher,) = agent.attachments._streams, agent.exit_watchers._watchers
    aged.clock.advance(1.1 * AGE_S)
    await settled(lambda: attached not in agent.attachments._streams and len(agent.attachments) == 1)
    await settled(lambda: watcher not in agent.exit_watchers._watchers and len(agent.exit_watchers) == 1)


def _writers(before: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() - before if "_consume_request_iterator" in repr(task)]


#: How each stream of the contract ends that nobody ends: by its age, or by itself.
AGED = {
    "/fpstate.v1.GuestSessionService/Attach",
    "/fpstate.v1.ExitService/WatchExits",
    "/fpstate.v1.WatchService/Watch",
    "/fpstate.fault.v1.FaultService/WatchFaults",
}
#: Over when everything was said.
FINITE = {"/fpstate.v1.MigrationService/ExportVm"}


def test_every_stream_has_an_age() -> None:
    """A new one of the contract belongs here, with a test above: StreamAge.limit goes around it."""
    streams = {path for path in MATRIX if path.startswith("/fpstate.") and method_descriptor(path).server_streaming}
    assert streams == AGED | FINITE


@pytest.mark.asyncio
async def test_an_attachment_that_waits_for_its_hello_is_one_too(aged: World) -> None:
    """A stream on which nothing is said holds a place of its principal's, and ends with its age as well."""
    silent: Any = aged.sessions.Attach()
    await settled(lambda: aged.server.limits.under_way(streams=True) == 1)
    aged.clock.advance(1.1 * AGE_S)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(silent.read(), TIMEOUT_S)
    assert error_info(refused.value).reason == "ATTACH_OUT_OF_ORDER"
