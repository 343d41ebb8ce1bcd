"""A small HTTP/1.1 listener for pages that a process shows of itself: metrics and health.

It runs on the process's own loop, so what a page reads stands still meanwhile. Nothing can be changed through it, and
nothing of a request is read but its first line.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Final, Self

#: A request's line and headers, in bytes, and how long they may take to come.
_REQUEST_MAX: Final = 8192
_REQUEST_S: Final = 5.0
_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s]+):(\d{1,5})")
TEXT: Final = "text/plain; charset=utf-8"

#: Status, content type and body.
Answer = tuple[HTTPStatus, str, bytes]


def health_page(serving: Callable[[], bool]) -> Callable[[], Answer]:
    """The page /healthz: 200 while ``serving()``, else 503."""

    def page() -> Answer:
        if serving():
            return HTTPStatus.OK, TEXT, b"SERVING\n"
        return HTTPStatus.SERVICE_UNAVAILABLE, TEXT, b"NOT_SERVING\n"

    return page


def loopback_address(address: str) -> tuple[str, int]:
    """Read HOST:PORT, of loopback alone. Raises ``ValueError``."""
    match = _HOST_PORT.fullmatch(address)
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"expected HOST:PORT, got {address!r}")
    host = match[1].strip("[]")
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return host, int(match[2])
    if host == "localhost":
        return host, int(match[2])
    raise ValueError(f"expected an address of loopback, got {address!r}")


class HttpListener:
    """Pages by their paths. ``port`` 0 is the system's choice; ``port`` is what it was once the block is entered."""

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], Answer]]) -> None:
        self._host = host
        self._pages = pages
        self._server: asyncio.Server | None = None
        self.port = port

    async def __aenter__(self) -> Self:
        """Listen. Raises ``OSError``."""
        self._server = await asyncio.start_server(self._serve, self._host, self.port, limit=_REQUEST_MAX)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(*self._answer(head)))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, OSError):
            pass  # whoever that was speaks no HTTP, or has gone
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _answer(self, head: bytes) -> Answer:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        if method not in (b"GET", b"HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, TEXT, b"GET\n"
        page = self._pages.get(path)
        return page() if page is not None else (HTTPStatus.NOT_FOUND, TEXT, ", ".join(self._pages).encode() + b"\n")


def _response(status: HTTPStatus, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
