"""A handler out of which a CancelledError comes that is not the call's own answers nobody: the client hangs.

Source: grpc/grpc#29248, closed, and still so on 1.85.1: 3.0 s of a deadline of 3 s. Guard: ErrorInterceptor answers
CANCELLED at once, on streams as well; and every unary call of our clients has a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fpstate.v1 import exit_pb2, exit_pb2_grpc, session_pb2, session_pb2_grpc

from fpstated.testing_host import host_on_a_thread
from guest_agent.aio import open_async_session
from guest_agent.aio_host import AsyncHost
from guest_agent.directive import DirectiveListener
from guest_agent.host import Host
from guest_agent.session import open_session
from host_agent.service import interceptor
from host_agent.service.interceptor import ErrorInterceptor
from host_agent.service.layers import Context, layered
from host_agent.service.trace_layer import current_call
from host_agent.state import HostConfig
from tests.traps.bare import TIMEOUT_S, bare, until
from vmm_controller.config import ControllerConfig
from vmm_controller.controller import Controller

VCPU = "vms/a/vcpus/0"


async def cancelled_by_somebody() -> None:
    """Wait for a future that somebody else cancels."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@pytest.mark.asyncio
async def test_bare(tmp_path: Path, note: Callable[..., None]) -> None:
    """Two seconds of patience, and an answer after all of them."""

    async def stray(_request: bytes, _context: object) -> bytes:
        await cancelled_by_somebody()
        return b""

    async with bare(tmp_path, Stray=grpc.unary_unary_rpc_method_handler(stray)) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.unary("Stray")(b"", timeout=2)
        hangs = caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        note("a stray CancelledError in a handler answers nobody", there=hangs)


# -- the host answers --------------------------------------------------------------------------------------------------


class Sessions(session_pb2_grpc.GuestSessionServiceServicer):
    """A stream both ways, and a unary call, in which something else is cancelled."""

    async def KeepAlive(self, request: session_pb2.KeepAliveRequest, context: Context) -> session_pb2.KeepAliveResponse:
        """At once."""
        await cancelled_by_somebody()
        return session_pb2.KeepAliveResponse()

    async def Attach(
        self, request_iterator: AsyncIterator[session_pb2.AttachRequest], context: Context
    ) -> AsyncIterator[session_pb2.AttachResponse]:
        """After the first message."""
        yield session_pb2.AttachResponse()
        await cancelled_by_somebody()


class Exits(exit_pb2_grpc.ExitServiceServicer):
    """A stream from the host."""

    async def WatchExits(
        self, request: exit_pb2.WatchExitsRequest, context: Context
    ) -> AsyncIterator[exit_pb2.WatchExitsResponse]:
        """Before the first message."""
        await cancelled_by_somebody()
        yield exit_pb2.WatchExitsResponse()


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["unary", "server_stream", "bidi_stream"])
async def test_a_stray_cancellation_is_answered_at_once(tmp_path: Path, kind: str) -> None:
    """With CANCELLED, long before anybody's deadline; there is none here."""
    server = grpc.aio.server()
    inside = layered(server, ErrorInterceptor(3600))
    session_pb2_grpc.add_GuestSessionServiceServicer_to_server(Sessions(), inside)
    exit_pb2_grpc.add_ExitServiceServicer_to_server(Exits(), inside)
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        sessions: Any = session_pb2_grpc.GuestSessionServiceStub(channel)
        exits: Any = exit_pb2_grpc.ExitServiceStub(channel)

        async def call() -> None:
            match kind:
                case "unary":
                    await sessions.KeepAlive(session_pb2.KeepAliveRequest())
                case "server_stream":
                    await exits.WatchExits(exit_pb2.WatchExitsRequest()).read()
                case _:
                    async for _response in sessions.Attach():
                        pass

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call(), TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.CANCELLED
    await server.stop(None)


# -- and the clients would not wait for ever ---------------------------------------------------------------------------


@pytest.fixture
def without_deadline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The unary calls that came without a deadline, as the host saw them."""
    met: list[str] = []
    has_none = interceptor._has_no_deadline

    def noting(context: Context) -> bool:
        call = current_call.get()
        if has_none(context):
            met.append(call[0].path if call is not None else "?")
        return has_none(context)

    monkeypatch.setattr(interceptor, "_has_no_deadline", noting)
    return met


def test_every_unary_call_of_the_blocking_client_has_a_deadline(without_deadline: list[str]) -> None:
    """The calls around a session, and those of a session with its keepalive and a decision that is waited for."""
    with host_on_a_thread(HostConfig(faults=True)) as server, Host(server.address) as host:
        host.create_vm("a")
        host.request_permission("vms/a")
        host.create_vcpu("vms/a")
        host.info()
        server.fail_allocation()
        server.controller("retry-after:base=0.01,tries=3,then=pause")
        with (
            open_session(server.address, vcpus=[VCPU], lease_s=0.1) as session,
            DirectiveListener(session, lambda _directive: None, vcpus=[VCPU]),
        ):
            session.vcpu(VCPU).xsetbv(0x602E7)
        host.delete_vm("vms/a", force=True)
        calls = server._host._server.metrics.registry.get_sample_value(
            "grpc_server_started_total",
            {
                "grpc_type": "unary",
                "grpc_service": "fpstate.v1.GuestSessionService",
                "grpc_method": "WaitOutcome",
            },
        )
        assert calls, "the decision was waited for"
    assert without_deadline == []


@pytest.mark.asyncio
async def test_every_unary_call_of_the_asyncio_clients_has_a_deadline(without_deadline: list[str]) -> None:
    """AsyncHost, AsyncSession and a controller that decides."""
    with host_on_a_thread(HostConfig(faults=True)) as server:
        async with AsyncHost(server.address) as host:
            await host.create_vm("a")
            await host.request_permission("vms/a")
            await host.create_vcpu("vms/a")
            server.fail_allocation()
            controller = Controller(host.channel, ControllerConfig(lease_s=0.1))
            running = asyncio.ensure_future(controller.run())
            async with await open_async_session(server.address, vcpus=[VCPU]) as session:
                await session.vcpu(VCPU).xsetbv(0x602E7)
            renewed = {
                "grpc_type": "unary",
                "grpc_service": "fpstate.v1.ExitService",
                "grpc_method": "RenewControl",
            }
            samples = server._host._server.metrics.registry.get_sample_value
            await until(lambda: bool(samples("grpc_server_started_total", renewed)))
            controller.stop()
            await running
            await host.delete_vm("vms/a", force=True)
    assert without_deadline == []
