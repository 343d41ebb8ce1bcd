"""What is no request at all, and what a caller may make the host repeat: each is refused in words and costs nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import pytest
from fpstate.v1 import session_pb2, vcpu_pb2, vm_pb2

from fpu_core.cpuid import builtin_profile, format_cpuid_dump
from host_agent.service import session_service
from host_agent.service.access.matrix import MATRIX
from host_agent.service.errors import Failure, shortened, status_of
from host_agent.service.limits import XSAVE_BYTES_MAX
from host_agent.service.server import SERVICES
from host_agent.vms import IDLE_PROCESSORS_MAX
from tests.service.world import TIMEOUT_S, World, details, error_info, read

#: gRPC's own default for the metadata that a client takes. Source: GRPC_ARG_MAX_METADATA_SIZE.
METADATA_MAX = 8192


async def refusal_of(channel: grpc.aio.Channel, method: str, *messages: bytes) -> grpc.aio.AioRpcError:
    """Send bytes under a method's path, whatever its kind, and return what it was refused with."""
    call: Any = channel.stream_stream(method)(timeout=TIMEOUT_S)
    for message in messages:
        await call.write(message)
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _read_all(call)
    return caught.value


async def _read_all(call: Any) -> None:  # noqa: ANN401 -- a call has no public type
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.mark.asyncio
async def test_bytes_that_are_no_message(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Every method refuses them as a mistake of its caller, and the log does not fill with tracebacks."""
    with caplog.at_level(logging.ERROR):
        async with grpc.aio.insecure_channel(world.server.address) as channel:
            for method in MATRIX:
                error = await refusal_of(channel, method, b"\xff\xff\xff")
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, method
                assert error_info(error).metadata["field"] == "request"
            error = await refusal_of(channel, "/fpstate.v1.VmService/GetVm", b"\x0a\x02\xff\xfe")
            assert "UTF-8" in (error.details() or "")
    assert not caplog.records


@pytest.mark.asyncio
async def test_a_message_in_the_middle_that_is_none(world: World) -> None:
    """It ends an Attach stream with what was wrong; what came before has happened."""
    guest = await world.guest()
    async with grpc.aio.insecure_channel(world.server.address) as channel:
        call: Any = channel.stream_stream("/fpstate.v1.GuestSessionService/Attach")(timeout=TIMEOUT_S)
        await call.write(guest.hello().SerializeToString())
        assert await call.read() is not grpc.aio.EOF
        await call.write(guest.batch(guest.enable_tiles()).SerializeToString())
        assert session_pb2.AttachResponse.FromString(await call.read()).HasField("outcomes")
        await call.write(b"\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.asyncio
@pytest.mark.parametrize("letter", [pytest.param("x", id="ASCII"), pytest.param("\u20ac", id="three bytes a letter")])
async def test_a_refusal_of_a_huge_field_arrives(world: World, letter: str) -> None:
    """What is repeated of a request is cut, or the client would get gRPC's complaint about metadata for an answer."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.vms.GetVm(vm_pb2.GetVmRequest(name=letter * 100_000))
    assert error_info(caught.value).reason == "FIELD_INVALID"
    assert (caught.value.details() or "").startswith("name: expected a name vms/{vm}, got '")


def test_a_status_fits_into_metadata() -> None:
    """The text three times, as gRPC sends it, and values as long as they get: below what a client takes."""
    failure = Failure(
        "FIELD_INVALID", "\u20ac" * 10_000, {"field": "\u20ac" * 10_000, "expected": "x" * 10_000}, "f" * 10_000
    )
    status = status_of(failure)
    percent_encoded = 3 * len(status.message.encode())
    assert percent_encoded + 4 / 3 * status.ByteSize() < METADATA_MAX
    assert len(details(status)) == 2


def test_a_text_is_cut_in_its_middle() -> None:
    """Whole letters at both ends; a text that fits is left alone."""
    assert shortened("as it is", 8) == "as it is"
    assert shortened("name: expected x, got yyyyyyyyyyyyyyyy'", 20) == "name: e ... yyyyyy'"
    assert shortened("\u20ac\u20ac\u20ac\u20ac", 11) == "\u20ac ... \u20ac"


@pytest.mark.asyncio
async def test_a_stream_that_never_says_hello_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold its slot for as long as its connection lives; one that has said hello may be silent for ever."""
    guest = await world.guest()
    monkeypatch.setattr(session_service, "HELLO_DEADLINE_S", 0.05)
    greeted, silent = world.sessions.Attach(), world.sessions.Attach()
    await greeted.write(guest.hello())
    await read(greeted)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(silent.read(), TIMEOUT_S)
    assert error_info(caught.value).reason == "ATTACH_OUT_OF_ORDER"
    await greeted.write(guest.batch(guest.enable_tiles()))
    assert (await read(greeted)).HasField("outcomes")
    greeted.cancel()


@pytest.mark.asyncio
async def test_health_lists_every_service(world: World) -> None:
    """The call that grpcio's servicer does not have: by itself it would be a bug of the host."""
    async with grpc.aio.insecure_channel(world.server.address) as channel:
        listing: Any = channel.unary_unary("/grpc.health.v1.Health/List")
        listed: bytes = await listing(b"", timeout=TIMEOUT_S)
    assert all(service.encode() in listed for service in SERVICES)


@pytest.mark.asyncio
async def test_an_image_far_beyond_any_processor(world: World) -> None:
    """It is refused by its size, since the call would be kept with its request id."""
    vm = await world.vm()
    request = vcpu_pb2.SetXsaveRequest(name=f"{vm}/vcpus/0", xsave=bytes(XSAVE_BYTES_MAX + 1))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.vcpus.SetXsave(request)
    assert error_info(caught.value).metadata["field"] == "xsave"
    await world.vcpus.SetXsave(vcpu_pb2.SetXsaveRequest(name=f"{vm}/vcpus/0", xsave=bytes(XSAVE_BYTES_MAX)))


@pytest.mark.asyncio
async def test_processors_that_nobody_uses_are_forgotten(world: World) -> None:
    """A caller can think up any number of CPUID dumps; those in use, and the built-in ones, stay."""
    profile = format_cpuid_dump(builtin_profile("sapphire-rapids"))
    await world.vm("built-in")
    kept = await world.vm("kept", cpuid_dump=f"{profile}# kept\n")
    for nr in range(2 * IDLE_PROCESSORS_MAX):
        name = await world.vm("dump", cpuid_dump=f"{profile}# {nr}\n")
        await world.vms.DeleteVm(vm_pb2.DeleteVmRequest(name=name, force=True))
    state = world.server.agent.state
    dumps = [source for source, _rules in state.platforms if source.startswith("CPU")]
    assert len(dumps) == IDLE_PROCESSORS_MAX + 1
    assert any(platform is state.vms[kept].platform for platform in state.platforms.values())
    await world.vms.DeleteVm(vm_pb2.DeleteVmRequest(name="vms/built-in", force=True))
    await world.vm("built-in")
    assert len(state.platforms) == len(dumps) + 1
