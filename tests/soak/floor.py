"""``python -m tests.soak.floor``: what gRPC for asyncio alone leaves behind for each stream that its client gives up.

A server with one method and nothing else; a client in another process opens streams, hears one answer, and cancels.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from tests.live.host import CHANNEL_OPTIONS, figures_of

_ROUNDS: Final = 5
_ROUND_S: Final = 12.0
_METHOD: Final = "/floor/Echo"


class _Echo(grpc.GenericRpcHandler):
    def service(self, _details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401 -- generic to the type checker alone
        """The one method."""

        async def echo(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
            async for request in requests:
                yield request

        return grpc.stream_stream_rpc_method_handler(echo)


async def _serve(folder: str) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(),))
    server.add_insecure_port(f"unix:{folder}/floor.sock")
    await server.start()
    before = 0
    for nr in range(_ROUNDS):
        command = (sys.executable, "-m", "tests.soak.floor", f"unix:{folder}/floor.sock")
        client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        streams = int((await client.communicate())[0])
        gc.collect()
        now = figures_of(os.getpid()).rss_kib
        if nr:
            print(
                f"streams given up: {streams:,}, bytes left by each: {(now - before) * 1024 / streams:.0f}", flush=True
            )
        before = now
    await server.stop(None)


async def _give_up(address: str) -> None:
    until, count = time.monotonic() + _ROUND_S, 0
    while time.monotonic() < until:
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            streams: list[Any] = [channel.stream_stream(_METHOD)() for _ in range(64)]
            for stream in streams:
                await stream.write(b"x")
                await stream.read()
            for stream in streams:
                stream.cancel()
        count += len(streams)
    print(count)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(_give_up(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="fpstated-floor-") as scratch:
            asyncio.run(_serve(scratch))
