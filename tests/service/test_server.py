"""Where a host listens, what it says about itself, and how it goes away."""

from __future__ import annotations

import asyncio
import importlib
import socket
import stat
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from fpstate.v1 import (
    exit_pb2,
    host_pb2,
    host_pb2_grpc,
    session_pb2,
    vm_pb2,
)
from google.protobuf import descriptor_pool, duration_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from guest_agent.channel import CHANNEL_OPTIONS
from host_agent.capabilities import capabilities
from host_agent.service.address import AddressError, UnixAddress, parse_address, prepare_socket
from host_agent.service.server import _OPTIONS, SERVICES, HostServer, serve
from host_agent.state import HostConfig
from tests.service.world import TIMEOUT_S, World, error_info, read, read_outcomes

# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:7443", "[::1]:0"])
def test_plaintext_tcp_has_to_be_asked_for(address: str) -> None:
    """Without the flag no TCP address is good, and the refusal names the flag."""
    with pytest.raises(AddressError, match="allow_insecure_tcp"):
        parse_address(address, allow_insecure_tcp=False)
    assert parse_address(address, allow_insecure_tcp=True).target == address


@pytest.mark.parametrize("address", ["0.0.0.0:7443", "10.0.0.1:0", "[::]:0", "example.org:1"])
def test_beyond_loopback_there_is_mutual_tls_or_nothing(address: str) -> None:
    """Not even with the flag; the refusal says what is missing."""
    with pytest.raises(AddressError, match="--tls-cert, --tls-key, --tls-ca"):
        parse_address(address, allow_insecure_tcp=True)
    assert parse_address(address, tls=True).target == address


@pytest.mark.parametrize("address", ["127.0.0.1:70000", "x", "", "a b:1", "[::1:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """With and without TLS."""
    for tls in (False, True):
        with pytest.raises(AddressError, match="expected unix:PATH"):
            parse_address(address, allow_insecure_tcp=True, tls=tls)


def test_a_path_that_no_socket_can_have_is_refused() -> None:
    """sun_path has room for 107 bytes."""
    with pytest.raises(AddressError, match="107 bytes"):
        parse_address(f"unix:/tmp/{'x' * 120}", allow_insecure_tcp=False)


def test_a_dead_socket_makes_room(tmp_path: Path) -> None:
    """What a killed host left behind is removed."""
    path = tmp_path / "host.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    prepare_socket(UnixAddress(path))
    assert not path.exists()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A file at the address is somebody's file."""
    path = tmp_path / "host.sock"
    path.write_text("precious")
    with pytest.raises(AddressError, match="is no socket"):
        prepare_socket(UnixAddress(path))
    assert path.read_text() == "precious"


def test_the_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """Who may talk to the host is a matter of file modes."""
    prepare_socket(UnixAddress(tmp_path / "run" / "host.sock"))
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


def test_a_folder_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    """Somebody else could put a socket in this one's place."""
    tmp_path.chmod(0o777)
    with pytest.raises(AddressError, match="can be written by everybody"):
        prepare_socket(UnixAddress(tmp_path / "host.sock"))


@pytest.mark.asyncio
async def test_a_living_hosts_socket_is_not_taken(world: World) -> None:
    """A second host at the same address is refused, and the first one goes on."""
    with pytest.raises(AddressError, match="in use by a running host agent"):
        await serve(HostConfig(), world.server.address)
    assert (await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())).header.host == "test-host"


@pytest.mark.asyncio
async def test_the_socket_is_its_owners_and_goes_with_the_host(tmp_path: Path) -> None:
    """Mode 0600 while it is there, and nothing is left."""
    path = tmp_path / "host.sock"
    async with HostServer(HostConfig(), f"unix:{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


@pytest.mark.asyncio
async def test_a_port_of_the_systems_choice_can_be_read() -> None:
    """With the flag a host listens on loopback, and says where."""
    async with HostServer(HostConfig(), "127.0.0.1:0", allow_insecure_tcp=True) as server:
        assert server.port > 0
        assert server.address == f"127.0.0.1:{server.port}"
        async with grpc.aio.insecure_channel(server.address) as channel:
            info = await host_pb2_grpc.HostServiceStub(channel).GetHostInfo(host_pb2.GetHostInfoRequest())
    assert info.protocol_version == "fpstate.v1"


@pytest.mark.asyncio
async def test_a_port_in_use_is_refused() -> None:
    """Two hosts on one port would share its calls."""
    async with HostServer(HostConfig(), "127.0.0.1:0", allow_insecure_tcp=True) as server:
        with pytest.raises(AddressError, match=str(server.port)):
            await serve(HostConfig(), server.address, allow_insecure_tcp=True)


# -- what it says about itself -----------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_host_says_what_it_is_and_can_do(world: World) -> None:
    """Profiles, policies, kernel rules, limits and capabilities are what the code has."""
    info = await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
    assert (info.header.host, info.header.boot_id) == ("test-host", "test-boot")
    assert tuple(info.capabilities) == capabilities(world.server.agent.state.config)
    assert "sapphire-rapids" in info.profiles
    assert info.kernel_rules[0] == "6.18"
    assert list(info.policies) == sorted(each for each in vm_pb2.AllocationPolicy.values() if each)
    assert info.limits.cpus == 4
    assert info.limits.events_per_batch_max >= 128
    assert info.drain_state == host_pb2.DRAIN_STATE_SERVING
    assert not info.usage.HasField("byte_limit")


@pytest.mark.asyncio
async def test_the_hosts_byte_limit_can_be_set_and_lifted(world: World) -> None:
    """The mask says what to change; a field named there and absent is cleared."""
    request = host_pb2.UpdateHostRequest(settings=host_pb2.HostSettings(byte_limit=4096))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.hosts.UpdateHost(request)
    assert error_info(caught.value).metadata["field"] == "update_mask"
    request.update_mask.paths.append("byte_limit")
    assert (await world.hosts.UpdateHost(request)).settings.byte_limit == 4096
    request.settings.ClearField("byte_limit")
    assert not (await world.hosts.UpdateHost(request)).settings.HasField("byte_limit")


@pytest.mark.asyncio
async def test_health_is_per_service(world: World) -> None:
    """Each says that it serves."""
    async with grpc.aio.insecure_channel(world.server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        status = health_pb2.HealthCheckResponse
        for name in ("", "fpstate.v1.VmService", "fpstate.v1.WatchService", "fpstate.fault.v1.FaultService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == status.SERVING


@pytest.mark.asyncio
async def test_reflection_shows_the_whole_contract(world: World) -> None:
    """A generic client finds every service."""
    async with grpc.aio.insecure_channel(world.server.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast("grpc.Channel", channel))
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        await call.done_writing()
    names = {service.name for service in answer.list_services_response.service}
    assert set(SERVICES) <= names


def test_no_call_is_forgotten() -> None:
    """Every method of the contract is written in the service package."""
    handlers = {
        f"/{service}/{name}": handler for service in SERVICES for name, handler in _own_methods(service).items()
    }
    for method, is_ours in handlers.items():
        assert is_ours, method


def _own_methods(service: str) -> dict[str, bool]:
    """Whether each method of a service is defined in the service package, not in the generated base class."""
    descriptor = descriptor_pool.Default().FindServiceByName(service)
    name = service.rpartition(".")[2]
    module = f"host_agent.service.{name.removesuffix('Service').lower().removeprefix('guest')}_service"
    try:
        cls = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return dict.fromkeys((method.name for method in descriptor.methods), False)
    return {method.name: method.name in vars(cls) for method in descriptor.methods}


def test_a_client_of_ours_pings_no_faster_than_a_host_permits() -> None:
    """A server hangs up on a client that does, with too_many_pings. Source: grpc/doc/keepalive.md."""
    permitted_ms = dict(_OPTIONS)["grpc.http2.min_recv_ping_interval_without_data_ms"]
    assert dict(CHANNEL_OPTIONS)["grpc.keepalive_time_ms"] > permitted_ms


# -- how it goes away --------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_draining_host_tells_everybody_first(world: World) -> None:
    """Health NOT_SERVING, DRAINING on the streams, nothing new taken; what is there goes on until the grace is over."""
    guest = await world.guest()
    stream = world.sessions.Attach()
    await stream.write(guest.hello())
    assert (await read(stream)).HasField("attached")

    watch = world.exits.WatchExits(exit_pb2.WatchExitsRequest())
    await watch.read()

    request = host_pb2.DrainHostRequest(grace=duration_pb2.Duration(seconds=600), resume_target="unix:/run/b.sock")
    answer = await world.hosts.DrainHost(request)
    assert answer.drain_state == host_pb2.DRAIN_STATE_DRAINING
    draining = (await read(stream)).draining
    assert (draining.resume_target, draining.grace.seconds) == ("unix:/run/b.sock", 600)

    async with grpc.aio.insecure_channel(world.server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        status = (await health.Check(health_pb2.HealthCheckRequest())).status
    assert status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.sessions.OpenSession(session_pb2.OpenSessionRequest(vcpus=[guest.vcpu]))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert error_info(caught.value).reason == "HOST_DRAINING"

    await stream.write(guest.batch(guest.enable_tiles()))
    assert (await read_outcomes(stream, 1))[0].HasField("done")

    await world.hosts.DrainHost(host_pb2.DrainHostRequest())  # a second one shortens the grace
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await read(stream)
    assert error_info(ended.value).reason == "HOST_DRAINING"
    assert error_info(await _end_of(watch)).reason == "HOST_DRAINING"
    await asyncio.wait_for(world.server.drained(), TIMEOUT_S)
    info = await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
    assert info.drain_state == host_pb2.DRAIN_STATE_DRAINED


async def _end_of(stream: Any) -> grpc.aio.AioRpcError:  # noqa: ANN401 -- a call has no public type
    """Read a stream to its end, which has to be a failure."""
    try:
        while await asyncio.wait_for(stream.read(), TIMEOUT_S) is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the stream ended well")


@pytest.mark.asyncio
async def test_a_second_stop_leaves_the_next_host_alone(tmp_path: Path) -> None:
    """Its socket is where the first one's was."""
    address = f"unix:{tmp_path}/s"
    async with HostServer(HostConfig(), address) as first:
        pass
    async with HostServer(HostConfig(), address):
        await first.stop()
        assert (tmp_path / "s").is_socket()


@pytest.mark.asyncio
async def test_drain_and_stop_does_not_wait_for_an_idle_stream(world: World) -> None:
    """The stream is ended by the drain, so the server stops without the whole grace."""
    guest = await world.guest()
    stream = world.sessions.Attach()
    await stream.write(guest.hello())
    await stream.read()
    await asyncio.wait_for(world.server.drain_and_stop(0.0), TIMEOUT_S)
    await asyncio.wait_for(world.server.wait(), TIMEOUT_S)
    stream.cancel()


@pytest.mark.asyncio
async def test_a_call_that_waits_is_told_that_the_host_goes(world: World) -> None:
    """A vCPU thread that waits for a decision hears UNAVAILABLE, and asks again elsewhere or later."""
    guest = await world.guest()
    await world.fail_next_growth()
    call = asyncio.create_task(guest.submit_until_final(guest.enable_tiles()))
    await world.open_exit()
    await asyncio.wait_for(world.server.drain_and_stop(0.0), TIMEOUT_S)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
