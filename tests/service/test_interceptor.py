"""What a servicer raises becomes one status; nothing hangs and nothing leaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from fpstate.v1 import host_pb2, host_pb2_grpc

from fpu_core.errors import CoreBug
from host_agent.service.errors import Failure
from host_agent.service.interceptor import ErrorInterceptor
from host_agent.service.layers import Context, layered
from tests.service.world import TIMEOUT_S, error_info


class StandIn(host_pb2_grpc.HostServiceServicer):
    """A service whose GetHostInfo does what the test wants."""

    def __init__(self, behave: Callable[[], Awaitable[None]]) -> None:
        self._behave = behave

    async def GetHostInfo(self, request: host_pb2.GetHostInfoRequest, context: Context) -> host_pb2.GetHostInfoResponse:
        """Behave, then answer."""
        await self._behave()
        return host_pb2.GetHostInfoResponse(version="1")


@asynccontextmanager
async def served(
    tmp_path: Path, behave: Callable[[], Awaitable[None]], deadline_s: float = TIMEOUT_S
) -> AsyncIterator[host_pb2_grpc.HostServiceAsyncStub]:
    """The stand-in behind the layer."""
    server = grpc.aio.server()
    host_pb2_grpc.add_HostServiceServicer_to_server(StandIn(behave), layered(server, ErrorInterceptor(deadline_s)))
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
            yield host_pb2_grpc.HostServiceStub(channel)
    finally:
        await server.stop(None)


async def refused_with(tmp_path: Path, behave: Callable[[], Awaitable[None]], **options: float) -> grpc.aio.AioRpcError:
    """Call the stand-in and return what it refused with."""
    async with served(tmp_path, behave, **options) as host:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await host.GetHostInfo(host_pb2.GetHostInfoRequest())
    return caught.value


@pytest.mark.asyncio
async def test_a_refusal_has_its_code_and_reason(tmp_path: Path) -> None:
    """A Failure comes out as the table says."""

    async def refuse() -> None:
        raise Failure.because("VM_MOVED", "vms/a has moved", vm="vms/a", target="unix:/b")

    error = await refused_with(tmp_path, refuse)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == "vms/a has moved"
    assert dict(error_info(error).metadata) == {"vm": "vms/a", "target": "unix:/b"}


@pytest.mark.asyncio
async def test_what_cannot_be_sent_is_no_bug(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A client that goes while it is refused: gRPC fails to send the status, and nobody is told, nor is the log."""
    met = asyncio.Event()

    async def cannot_send() -> None:
        met.set()
        raise grpc.aio.InternalError('Failed "execute_batch"')

    with caplog.at_level(logging.ERROR):
        async with served(tmp_path, cannot_send) as host:
            call = host.GetHostInfo(host_pb2.GetHostInfoRequest())
            await asyncio.wait_for(met.wait(), TIMEOUT_S)
            call.cancel()
        assert not caplog.records


@pytest.mark.asyncio
async def test_a_bug_is_logged_and_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An unforeseen exception is INTERNAL; its text stays in the host's log, with the traceback."""

    async def break_down() -> None:
        raise KeyError("/secret/path")

    with caplog.at_level(logging.ERROR):
        error = await refused_with(tmp_path, break_down)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "/secret/path" not in str(error.details())
    assert "Traceback" in caplog.text
    assert "/secret/path" in caplog.text


@pytest.mark.asyncio
async def test_a_broken_invariant_is_named(tmp_path: Path) -> None:
    """Our own assertion is INTERNAL too, with a reason a client can tell from the rest."""

    async def assert_wrongly() -> None:
        raise CoreBug("the ledger does not balance")

    error = await refused_with(tmp_path, assert_wrongly)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error_info(error).reason == "INTERNAL_INVARIANT"


@pytest.mark.asyncio
async def test_a_stray_cancellation_ends_the_call(tmp_path: Path) -> None:
    """A CancelledError out of somebody else's future answers CANCELLED; the client does not wait for its deadline."""

    async def wait_for_the_cancelled() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    error = await refused_with(tmp_path, wait_for_the_cancelled)
    assert error.code() is grpc.StatusCode.CANCELLED


@pytest.mark.asyncio
async def test_a_call_without_a_deadline_has_the_hosts(tmp_path: Path) -> None:
    """No unary call lasts for ever."""

    async def sleep() -> None:
        await asyncio.Event().wait()

    error = await refused_with(tmp_path, sleep, deadline_s=0.05)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error_info(error).reason == "DEADLINE_REACHED"
    assert error_info(error).metadata["method"] == "/fpstate.v1.HostService/GetHostInfo"


@pytest.mark.asyncio
async def test_the_callers_own_deadline_counts(tmp_path: Path) -> None:
    """A call that brought a deadline is given up by it, and its handler is cancelled."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def sleep() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with served(tmp_path, sleep) as host:
        for deadline_s in (0.1, 1, 10):  # a busy machine may not come to the call within a short one
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await host.GetHostInfo(host_pb2.GetHostInfoRequest(), timeout=deadline_s)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if begun.is_set():
                break
        await asyncio.wait_for(cancelled.wait(), TIMEOUT_S)
