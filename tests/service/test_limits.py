"""What one peer can cost the others: nothing beyond its share, whether it floods, does not read, or walks away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from fpstate.v1 import event_pb2, exit_pb2, host_pb2, session_pb2

from host_agent.service.attach_stream import AttachStream
from host_agent.service.clock import ManualClock
from host_agent.service.exit_watch import ExitNews
from host_agent.service.limit_layer import PeerLimits, TokenBucket
from host_agent.service.limits import (
    EVENTS_PER_BATCH_MAX,
    MESSAGE_BYTES_MAX,
    OUTCOMES_PER_MESSAGE_MAX,
    WATCH_QUEUE_MAX,
)
from host_agent.service.options import ServerOptions
from host_agent.service.server import HostServer
from host_agent.state import HostConfig
from tests.service.certificates import Certificates
from tests.service.world import TIMEOUT_S, World, details, error_info, read, settled


def host(path: Path, clock: ManualClock, **limits: float) -> HostServer:
    """A host with these limits of each principal."""
    options = ServerOptions(peer_limits=PeerLimits(**limits))  # type: ignore[arg-type]
    return HostServer(HostConfig(faults=True), f"unix:{path}/s", options=options, clock=clock)


async def read_to_the_end(stream: Any) -> None:  # noqa: ANN401 -- a call has no public type
    """Read what a stream still has."""
    while await asyncio.wait_for(stream.read(), TIMEOUT_S) is not grpc.aio.EOF:
        pass


# -- rate --------------------------------------------------------------------------------------------------------------


def test_a_bucket_gives_what_it_has_and_fills_with_time() -> None:
    """Two tokens, then one every half second; never more than two."""
    bucket = TokenBucket(per_s=2, size=2, tokens=2, filled_ns=0)
    assert [bucket.take(0) for _ in range(3)] == [0, 0, 500_000_000]
    assert bucket.take(499_999_999) > 0
    assert bucket.take(500_000_000) == 0
    assert [bucket.take(10**12) for _ in range(3)] == [0, 0, 500_000_000]


@pytest.mark.asyncio
async def test_calls_beyond_the_rate_are_refused_until_time_has_passed(tmp_path: Path) -> None:
    """RATE_LIMITED says when the next call is admitted, and then it is: the host's clock counts."""
    clock = ManualClock()
    async with (
        host(tmp_path, clock, calls_per_s=10, burst=3) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        world = World(server, clock, channel)
        for _ in range(3):
            await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        info, retry = details(caught.value)
        assert (info.reason, info.metadata["callsPerSecond"]) == ("RATE_LIMITED", "10")
        assert retry.retry_delay.ToMilliseconds() == 100
        clock.advance(0.1)
        await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())


@pytest.mark.asyncio
async def test_one_principal_s_flood_is_not_another_s(tmp_path: Path) -> None:
    """Each has a bucket of its own."""
    certificates, clock = Certificates(tmp_path / "certs"), ManualClock()
    options = ServerOptions(tls=certificates.host, peer_limits=PeerLimits(calls_per_s=1, burst=1))
    async with HostServer(HostConfig(), "localhost:0", options=options, clock=clock) as server:
        for identity in ("operator/a", "operator/b"):
            async with certificates.channel(server.address, identity) as channel:
                world = World(server, clock, channel)
                await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
                assert error_info(caught.value).metadata["principal"] == f"test.example/{identity}"


# -- at once -----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_streams_are_counted_apart_from_calls(tmp_path: Path) -> None:
    """With all its streams open a principal still calls; one more stream is refused, and one that ends makes room."""
    clock = ManualClock()
    async with host(tmp_path, clock, streams_max=2) as server, grpc.aio.insecure_channel(server.address) as channel:
        world = World(server, clock, channel)
        watches = [world.exits.WatchExits(exit_pb2.WatchExitsRequest()) for _ in range(2)]
        for watch in watches:
            await watch.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.exits.WatchExits(exit_pb2.WatchExitsRequest()).read()
        assert error_info(caught.value).reason == "LIMIT_REACHED"
        assert dict(error_info(caught.value).metadata) == {"limit": "streams_per_principal", "maximum": "2"}
        await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
        watches[0].cancel()
        await settled(lambda: server.limits.under_way(streams=True) == 1)
        again = world.exits.WatchExits(exit_pb2.WatchExitsRequest())
        await again.read()
        for watch in (watches[1], again):
            watch.cancel()


@pytest.mark.asyncio
async def test_calls_that_wait_are_counted_and_given_back(tmp_path: Path) -> None:
    """Calls that block for a decision are under way; when they are cancelled they are not."""
    clock = ManualClock()
    async with host(tmp_path, clock, calls_max=2) as server, grpc.aio.insecure_channel(server.address) as channel:
        world = World(server, clock, channel)
        guest = await world.guest()
        await world.fail_next_growth()
        await guest.submit(guest.enable_tiles())
        wait = session_pb2.WaitOutcomeRequest(session=guest.session, epoch=guest.epoch, vcpu=guest.vcpu, seq=1)
        waiting = [world.sessions.WaitOutcome(wait) for _ in range(2)]
        await settled(lambda: server.limits.under_way(streams=False) == 2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
        assert error_info(caught.value).metadata["limit"] == "calls_per_principal"
        for call in waiting:
            call.cancel()
        await settled(lambda: server.limits.under_way(streams=False) == 0)
        await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())


@pytest.mark.asyncio
async def test_a_message_that_is_too_large_is_refused_before_it_is_read(world: World) -> None:
    """The answer is gRPC's own, and the connection goes on."""
    guest = await world.guest()
    data = bytes(MESSAGE_BYTES_MAX)
    event = guest.event(register_write=event_pb2.RegisterWrite(feature=2, data=data))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.sessions.SubmitEvents(guest.request(event))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MESSAGE_BYTES_MAX) in str(caught.value.details())
    info = await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
    assert info.limits.message_bytes_max == MESSAGE_BYTES_MAX


@pytest.mark.parametrize("field", ["calls_max", "streams_max", "burst"])
def test_a_limit_that_cannot_be_is_named(field: str) -> None:
    """Zero of something is no limit but an end."""
    with pytest.raises(ValueError, match=f"{field}: expected 1 or more"):
        PeerLimits(**{field: 0})
    with pytest.raises(ValueError, match="calls_per_s"):
        PeerLimits(calls_per_s=-1)


# -- who does not read -------------------------------------------------------------------------------------------------


def _only_stream(server: HostServer) -> AttachStream:
    (stream,) = server.agent.attachments._streams
    assert isinstance(stream, AttachStream)
    return stream


#: Whatever can still move on a connection moves while so many calls go there and back on it.
_ROUND_TRIPS = 50


@pytest.mark.asyncio
async def test_a_reader_that_never_reads_is_not_listened_to(world: World) -> None:
    """It writes reads of whole tiles and takes no outcome: the host stops reading it, and what is queued is bounded."""
    guest = await world.guest()
    await guest.submit(guest.enable_tiles())
    stream = world.sessions.Attach()
    await stream.write(guest.hello())
    assert (await read(stream)).HasField("attached")
    written = 0

    async def write() -> None:
        nonlocal written
        while True:
            events = [guest.event(register_read=event_pb2.RegisterRead(feature=18, length=8192)) for _ in range(64)]
            message = guest.batch(*events)
            message.batch.outcomes_received_through.add(vcpu=guest.vcpu, seq=max(guest.next_seq[guest.vcpu] - 512, 1))
            await stream.write(message)
            written += 1

    writer = asyncio.create_task(write())
    try:
        reading = _only_stream(world.server)
        quiet = 0
        while quiet < _ROUND_TRIPS or reading._room.is_set():  # until the writer is stuck: the host reads no further
            before = written
            assert (await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())).usage.sessions == 1
            quiet = quiet + 1 if written == before else 0
            assert len(reading._queue) <= OUTCOMES_PER_MESSAGE_MAX + EVENTS_PER_BATCH_MAX
        assert not writer.done()
        assert len(reading._queue) >= OUTCOMES_PER_MESSAGE_MAX
    finally:
        writer.cancel()
        stream.cancel()
    await settled(world.server.agent.attachments.empty.is_set)


@pytest.mark.asyncio
async def test_a_watcher_that_never_reads_is_given_up(world: World) -> None:
    """More changes at once than may wait for it: it hears LIMIT_REACHED, nothing is kept for it, and it lists again."""
    watch = world.exits.WatchExits(exit_pb2.WatchExitsRequest())
    await watch.read()
    guest = await world.guest()
    await world.fail_next_growth()
    await guest.submit(guest.enable_tiles())
    watchers = world.server.agent.exit_watchers
    (watcher,) = watchers._watchers
    news = ExitNews("vms/a", exit_pb2.Exit(name=await world.open_exit()), world.server.agent.state.revision)
    for _ in range(3 * WATCH_QUEUE_MAX):  # without a pause: nothing is written meanwhile
        watchers.deliver(news)
        assert len(watcher._queue) <= WATCH_QUEUE_MAX
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_to_the_end(watch)
    assert error_info(caught.value).reason == "LIMIT_REACHED"
    assert watchers.empty.is_set()
