"""Every metric of the table is there and moves; the admin listeners answer, and are where they should be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import pytest_asyncio
from fpstate.v1 import event_pb2, exit_pb2, host_pb2, migration_pb2, session_pb2, vm_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from host_agent.journal.journal import JournalOptions
from host_agent.service.address import AddressError
from host_agent.service.clock import ManualClock
from host_agent.service.metrics import METRICS
from host_agent.service.options import ServerOptions
from host_agent.service.server import HostServer
from host_agent.state import HostConfig
from tests.service.certificates import Certificates
from tests.service.world import TIMEOUT_S, World, read

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest_asyncio.fixture
async def watched(tmp_path: Path) -> AsyncIterator[World]:
    """A host with both admin listeners and a state directory."""
    clock = ManualClock()
    options = ServerOptions(metrics="127.0.0.1:0", admin=f"unix:{tmp_path}/admin")
    config = HostConfig(faults=True, check_invariants=True, byte_limit=10_000_000)
    journal = JournalOptions(directory=tmp_path / "state")
    async with (
        HostServer(config, f"unix:{tmp_path}/s", options=options, clock=clock, journal=journal) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield World(server, clock, channel)


async def get(address: str, request: bytes) -> tuple[int, bytes]:
    """Status and body of an HTTP request."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), TIMEOUT_S)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


async def scrape(server: HostServer) -> Values:
    """Every sample by its name and labels."""
    status, body = await get(server.metrics_address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def value(values: Values, name: str, **labels: str) -> float:
    """The sample of exactly these labels; 0 where there is none yet."""
    return values.get((name, tuple(sorted(labels.items()))), 0.0)


async def live(world: World) -> dict[str, Any]:
    """A little of everything: growth, failure, decision, refusal, streams. Returns what is still open."""
    grown = await world.guest(f"{await world.vm('a')}/vcpus/0")
    await grown.submit(grown.enable_tiles())
    await grown.submit(grown.event(xsetbv=event_pb2.Xsetbv(value=7)), grown.event(hlt=event_pb2.Hlt()))
    refused = await world.guest(f"{await world.vm('b', permit=False)}/vcpus/0")
    await refused.submit(refused.enable_tiles())
    short = await world.guest(f"{await world.vm('c', byte_limit=4096)}/vcpus/0")
    await short.submit(short.enable_tiles())
    failed = await world.guest(f"{await world.vm('d')}/vcpus/0")
    await world.fail_next_growth()
    await failed.submit(failed.enable_tiles())
    control = await world.control()
    exits = (await world.exits.ListExits(exit_pb2.ListExitsRequest(vm="vms/d"))).exits
    await world.resolve(control, exits[0].name, exit_pb2.Decision(reclaim=exit_pb2.Reclaim(any=True)))
    with pytest.raises(grpc.aio.AioRpcError):
        await world.vms.GetVm(vm_pb2.GetVmRequest(name="vms/none"))
    stream = world.sessions.Attach()
    await stream.write(grown.hello())
    await read(stream)
    watch = world.exits.WatchExits(exit_pb2.WatchExitsRequest())
    await watch.read()
    await world.fail_next_growth()
    await world.vm("e")
    begin = migration_pb2.BeginMigrationRequest(name="vms/e", target="unix:/elsewhere")
    await world.migrations.BeginMigration(begin)
    return {"stream": stream, "watch": watch}


@pytest.mark.asyncio
async def test_every_metric_appears_and_moves(watched: World) -> None:
    """Before and after a little of everything: what the table lists is there, and is what happened."""
    server = watched.server
    before = await scrape(server)
    open_calls = await live(watched)
    after = await scrape(server)
    moved = {name for (name, labels), found in after.items() if found != value(before, name, **dict(labels))}
    expected = {spec.name for spec in METRICS if spec.kind != "histogram"}
    only_otherwise = {"fpstated_draining", "fpstated_certificate_loads_total", "fpstate_bytes_limit"}
    only_otherwise |= {"fpstated_storage_full", "fpstated_storage_failed"}
    # The writer thread may be at work at either scrape: the backlog may have moved, and need not have.
    assert expected - moved - {"fpstated_journal_backlog"} == only_otherwise
    assert value(after, "fpstate_growths_total", outcome="grown") == 2
    for outcome in ("no_memory", "quota", "no_permission"):
        assert value(after, "fpstate_growths_total", outcome=outcome) == 1
    assert value(after, "fpstate_allocation_failures_total") == 2
    assert value(after, "fpstated_exits_opened_total", cause="NO_MEMORY") == 1
    assert value(after, "fpstated_exits_settled_total", decision="RECLAIM", result="COMMITTED") == 1
    assert value(after, "fpstate_shrinks_total") == 1
    assert value(after, "fpstated_exits_open") == 2
    assert value(after, "fpstated_sessions") == value(after, "fpstated_sessions_opened_total") == 4
    assert value(after, "fpstated_events_total") == 6
    assert value(after, "fpstated_faults_armed") == 2
    assert value(after, "fpstated_calls_under_way", kind="stream") == 2
    assert value(after, "fpstate_bytes") == server.agent.state.allocator.host.used_bytes
    assert value(after, "fpstate_bytes_limit") == 10_000_000
    commits = value(after, "fpstated_journal_commit_seconds_count")
    assert 0 < commits <= value(after, "fpstated_journal_records_total") < value(after, "fpstated_journal_bytes_total")
    call = {"grpc_type": "unary", "grpc_service": "fpstate.v1.VmService", "grpc_method": "GetVm"}
    assert value(after, "grpc_server_started_total", **call) == 1
    assert value(after, "grpc_server_handled_total", **call, grpc_code="NOT_FOUND") == 1
    assert value(after, "grpc_server_handling_seconds_count", **call) == 1
    for stream in open_calls.values():
        stream.cancel()


@pytest.mark.asyncio
async def test_calls_are_counted_with_the_code_that_their_caller_gets(watched: World) -> None:
    """OK, a refusal of the innermost layer, a cancelled stream."""
    await watched.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
    stream = watched.exits.WatchExits(exit_pb2.WatchExitsRequest())
    await stream.read()
    stream.cancel()
    with pytest.raises(grpc.aio.AioRpcError):
        await watched.sessions.KeepAlive(session_pb2.KeepAliveRequest(session="sessions/none"))
    expected = {("GetHostInfo", "OK"), ("WatchExits", "CANCELLED"), ("KeepAlive", "NOT_FOUND")}
    # The host hears of a cancelled stream when it does.
    async with asyncio.timeout(TIMEOUT_S):
        while not expected <= await handled(watched):  # noqa: ASYNC110 -- a host tells nobody when a call ended
            await asyncio.sleep(0.01)


async def handled(world: World) -> set[tuple[str, str]]:
    """The methods that have ended, with their codes."""
    return {
        (dict(labels)["grpc_method"], dict(labels)["grpc_code"])
        for name, labels in await scrape(world.server)
        if name == "grpc_server_handled_total"
    }


@pytest.mark.asyncio
async def test_draining_and_certificates_are_metrics_too(tmp_path: Path) -> None:
    """Those that a boring host does not move."""
    certificates = Certificates(tmp_path / "certs")
    options = ServerOptions(tls=certificates.host, metrics="127.0.0.1:0")
    async with HostServer(HostConfig(), "localhost:0", options=options) as server:
        before = await scrape(server)
        assert await get(server.metrics_address, b"GET /healthz HTTP/1.1\r\n\r\n") == (200, b"SERVING\n")
        async with certificates.channel(server.address, "operator/o") as channel:
            world = World(server, ManualClock(), channel)
            await world.hosts.DrainHost(host_pb2.DrainHostRequest())
        after = await scrape(server)
        assert await get(server.metrics_address, b"GET /healthz HTTP/1.1\r\n\r\n") == (503, b"NOT_SERVING\n")
    assert value(before, "fpstated_certificate_loads_total") == 1
    assert not any(name.startswith(("fpstated_journal", "fpstated_storage")) for name, _ in after), "it is ephemeral"
    assert (value(before, "fpstated_draining"), value(after, "fpstated_draining")) == (0, 1)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 404, id="another path"),
        pytest.param(b"POST /metrics HTTP/1.1\r\n\r\n", 405, id="another method"),
        pytest.param(b"GET /metrics?x=1 HTTP/1.1\r\n\r\n", 200, id="a query"),
        pytest.param(b"\x16\x03\x01\x00\x00\r\n\r\n", 405, id="TLS"),
        pytest.param(b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", 0, id="too long"),
    ],
)
async def test_the_listener_answers_or_hangs_up(watched: World, request_bytes: bytes, status: int) -> None:
    """Whatever comes, the next one is answered."""
    assert (await get(watched.server.metrics_address, request_bytes))[0] == status
    assert (await get(watched.server.metrics_address, b"GET /healthz HTTP/1.1\r\n\r\n"))[0] == 200


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(ServerOptions(metrics="0.0.0.0:0"), id="metrics beyond loopback"),
        pytest.param(ServerOptions(metrics="unix:/x"), id="metrics on a unix socket"),
        pytest.param(ServerOptions(admin="0.0.0.0:0"), id="channelz beyond loopback"),
    ],
)
async def test_the_admin_listeners_are_for_loopback(tmp_path: Path, options: ServerOptions) -> None:
    """Anything else is refused, and nothing is left listening."""
    with pytest.raises(AddressError):
        await HostServer(HostConfig(), f"unix:{tmp_path}/s", options=options).start()
    async with HostServer(HostConfig(), f"unix:{tmp_path}/s"):
        pass


@pytest.mark.asyncio
async def test_metrics_go_anywhere_where_that_is_said(tmp_path: Path) -> None:
    """Plaintext, by a word of its own."""
    options = ServerOptions(metrics="0.0.0.0:0", metrics_anywhere=True)
    async with HostServer(HostConfig(), f"unix:{tmp_path}/s", options=options) as server:
        port = server.metrics_address.rpartition(":")[2]
        assert (await get(f"127.0.0.1:{port}", b"GET /healthz HTTP/1.1\r\n\r\n"))[0] == 200


def channelz(channel: grpc.aio.Channel) -> Any:  # noqa: ANN401 -- its stubs know no asyncio
    """The stub of channelz."""
    return channelz_pb2_grpc.ChannelzStub(cast("grpc.Channel", channel))


@pytest.mark.asyncio
async def test_channelz_shows_the_host_s_sockets(watched: World) -> None:
    """On the admin listener, with health; not on the host's own."""
    await watched.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
    async with grpc.aio.insecure_channel(watched.server.admin_address) as channel:
        servers = await channelz(channel).GetServers(channelz_pb2.GetServersRequest())
        health: Any = health_pb2_grpc.HealthStub(channel)
        status = (await health.Check(health_pb2.HealthCheckRequest(service="fpstate.v1.VmService"))).status
    assert sum(each.data.calls_succeeded for each in servers.server) >= 1
    assert status == health_pb2.HealthCheckResponse.SERVING
    async with grpc.aio.insecure_channel(watched.server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channelz(channel).GetServers(channelz_pb2.GetServersRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
