"""A way to a host that can be cut: a proxy that lets nothing through one way, or both, or ends whole connections."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

from guest_agent.channel import check_address

_CHUNK = 65_536


class CuttingProxy:
    """Listens on a unix socket, and forwards to ``target`` (``unix:PATH`` or ``HOST:PORT``).

    While ``to_host`` or ``to_client`` is clear, what comes that way waits, as it does behind a network that drops it.
    """

    def __init__(self, target: str, path: str) -> None:
        self._target = check_address(target)
        self._path = path
        self.address = f"unix:{path}"
        self.to_host, self.to_client = asyncio.Event(), asyncio.Event()
        self.to_host.set()
        self.to_client.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """End every connection at once, without a word."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        scheme, _, rest = self._target.partition(":")
        if scheme == "unix":
            return await asyncio.open_unix_connection(rest)
        return await asyncio.open_connection(scheme, int(rest))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            host_reader, host_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, host_writer}
        ways = {
            asyncio.create_task(_pump(reader, host_writer, self.to_host)),
            asyncio.create_task(_pump(host_reader, writer, self.to_client)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            self._writers -= {writer, host_writer}
            writer.transport.abort()
            host_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            await passes.wait()
            writer.write(data)
            await writer.drain()
