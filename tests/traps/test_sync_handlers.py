"""A handler that is a plain function runs on a thread beside an aio server, and can hang where its call is aborted.

Source: grpc/grpc#28989, #28999, open. Guard: coroutines and asynchronous generators only. One that is not is a bug that
its caller hears of as INTERNAL at once.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fpstate.v1 import host_pb2, host_pb2_grpc
from grpc_channelz.v1 import _async as channelz_async
from grpc_health.v1 import health
from grpc_reflection.v1alpha import _async as reflection_async

from host_agent.service.access.matrix import MATRIX
from host_agent.service.exit_service import ExitService
from host_agent.service.fault_service import FaultService
from host_agent.service.host_service import HostService
from host_agent.service.interceptor import ErrorInterceptor
from host_agent.service.layers import layered
from host_agent.service.migration_service import MigrationService
from host_agent.service.session_service import GuestSessionService
from host_agent.service.task_service import TaskService
from host_agent.service.vcpu_service import VcpuService
from host_agent.service.vm_service import VmService
from host_agent.service.watch_service import WatchService
from tests.service.calls import method_descriptor
from tests.traps.bare import TIMEOUT_S, bare

SERVICERS: dict[str, type] = {
    servicer.__name__: servicer
    for servicer in (
        ExitService,
        FaultService,
        GuestSessionService,
        HostService,
        MigrationService,
        TaskService,
        VcpuService,
        VmService,
        WatchService,
    )
}


@pytest.mark.asyncio
async def test_bare(tmp_path: Path, note: Callable[..., None]) -> None:
    """One that aborts, and one whose caller goes away while it works."""

    def abort(_request: bytes, context: Any) -> bytes:  # noqa: ANN401
        context.abort(grpc.StatusCode.ABORTED, "no")
        return b""

    def work(request: bytes, _context: object) -> bytes:
        time.sleep(0.2)
        return request

    handlers: dict[str, Any] = {
        "Abort": grpc.unary_unary_rpc_method_handler(abort),
        "Work": grpc.unary_unary_rpc_method_handler(work),
    }
    async with bare(tmp_path, **handlers) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.unary("Abort")(b"", timeout=5)
        hangs = caught.value.code() is not grpc.StatusCode.ABORTED
        gone: Any = server.unary("Work")(b"")
        await asyncio.sleep(0)
        gone.cancel()
        try:
            await server.unary("Echo")(b"", timeout=5)
        except grpc.aio.AioRpcError:
            hangs = True
        note("a plain function as a handler hangs its call", there=hangs)


@pytest.mark.parametrize("path", sorted(path for path in MATRIX if path.startswith("/fpstate.")))
def test_every_handler_of_a_host_is_asynchronous(path: str) -> None:
    """A coroutine function where one answer is due, an asynchronous generator function where several are."""
    _, service, name = path.split("/")
    behaviour = getattr(SERVICERS[service.rpartition(".")[2]], name)
    if method_descriptor(path).server_streaming:
        assert inspect.isasyncgenfunction(behaviour)
    else:
        assert inspect.iscoroutinefunction(behaviour)


@pytest.mark.parametrize(
    "behaviour",
    [
        health.aio.HealthServicer.Check,
        health.aio.HealthServicer.Watch,
        reflection_async.ReflectionServicer.ServerReflectionInfo,
        channelz_async.ChannelzServicer.GetServers,
    ],
    ids=lambda behaviour: behaviour.__qualname__,
)
def test_and_so_are_those_of_grpcs_own_services(behaviour: Callable[..., Any]) -> None:
    """What we serve beside the contract."""
    assert inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)


class Plain(host_pb2_grpc.HostServiceServicer):
    """A servicer of the threaded kind."""

    def GetHostInfo(self, request: host_pb2.GetHostInfoRequest, context: object) -> host_pb2.GetHostInfoResponse:
        """At once, and not to be awaited."""
        return host_pb2.GetHostInfoResponse()


@pytest.mark.asyncio
async def test_a_plain_function_is_a_bug_and_not_a_hang(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The layers call it on the loop, and find that nothing can be awaited."""
    server = grpc.aio.server()
    inside = layered(server, ErrorInterceptor(3600))
    host_pb2_grpc.add_HostServiceServicer_to_server(Plain(), inside)
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        stub = host_pb2_grpc.HostServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetHostInfo(host_pb2.GetHostInfoRequest(), timeout=TIMEOUT_S)
    await server.stop(None)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "TypeError" in caplog.text
