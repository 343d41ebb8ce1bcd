"""A bare grpc.aio server, for what a trap does where nobody guards against it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

TIMEOUT_S = 60
#: Whatever can still move on a connection moves while so many calls go there and back on it.
ROUND_TRIPS = 100

Unary = Callable[[bytes, Any], Any]

if TYPE_CHECKING:  # generic to the type checker alone
    Handler = grpc.RpcMethodHandler[bytes, bytes]
else:
    Handler = grpc.RpcMethodHandler


class BareMethods(grpc.GenericRpcHandler):
    """Methods of bytes. ``under_way`` is how many streams of ``Hold`` and ``Deaf`` have begun and not ended."""

    def __init__(self, **more: Handler) -> None:
        self.under_way = 0
        self._methods = {
            "Echo": grpc.unary_unary_rpc_method_handler(self._echo),
            "Hold": grpc.unary_stream_rpc_method_handler(self._hold),
            "Deaf": grpc.stream_stream_rpc_method_handler(self._hold),
            **more,
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """By the last part of the name."""
        return self._methods.get(str(handler_call_details.method).rpartition("/")[2])

    async def _echo(self, request: bytes, _context: object) -> bytes:
        return request

    async def _hold(self, _request: object, _context: object) -> AsyncIterator[bytes]:
        """Say one thing and no more."""
        self.under_way += 1
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            self.under_way -= 1


class Bare:
    """A server of such methods and one connection to it."""

    def __init__(self, methods: BareMethods, address: str, channel: grpc.aio.Channel) -> None:
        self.methods = methods
        self.address = address
        self.channel = channel

    def unary(self, name: str) -> Callable[..., Awaitable[bytes]]:
        """A unary call."""
        call: Callable[..., Awaitable[bytes]] = self.channel.unary_unary(f"/bare/{name}")
        return call

    def stream(self, name: str = "Hold") -> Any:  # noqa: ANN401 -- a call has no public type
        """Begin a stream of answers."""
        call: Any = self.channel.unary_stream(f"/bare/{name}")
        return call(b"")

    async def settle(self) -> None:
        """Let everything happen that is on its way, collect what nobody has any more, and again."""
        for _ in range(2):
            gc.collect()
            for _ in range(ROUND_TRIPS):
                await self.unary("Echo")(b"")


@asynccontextmanager
async def bare(folder: Path, **more: Handler) -> AsyncIterator[Bare]:
    """A bare server on a socket in ``folder`` until the end of the block."""
    methods, address = BareMethods(**more), f"unix:{folder}/bare"
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((methods,))
    server.add_insecure_port(address)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Bare(methods, address, channel)
    finally:
        await server.stop(None)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 -- what is waited for has no event of its own
            await asyncio.sleep(0.005)
