"""The listeners for whoever runs the host: metrics and health over HTTP, channelz over gRPC. Apart from the host's own.

    GET /metrics    Prometheus
    GET /healthz    200 while the host serves, 503 once it drains; for probes that know no TLS

Both are for loopback or a unix socket; who gets there is trusted to look, and can change nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Final, Self

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from host_agent.service.address import (
    AddressError,
    TcpAddress,
    UnixAddress,
    only_its_own_mode,
    parse_address,
    prepare_socket,
)

#: A request's line and headers, in bytes, and how long they may take to come.
_REQUEST_MAX: Final = 8192
_REQUEST_S: Final = 5.0
_TEXT: Final = "text/plain; charset=utf-8"

_Answer = tuple[HTTPStatus, str, bytes]


class AdminHttp:
    """A small HTTP/1.1 server on the host's own event loop, so that what it reads stands still meanwhile."""

    def __init__(
        self, registry: CollectorRegistry, serving: Callable[[], bool], address: str, *, anywhere: bool = False
    ) -> None:
        """Read the address; nothing is opened yet. Raises ``AddressError`` for one beyond loopback."""
        found = parse_address(address, allow_insecure_tcp=True, tls=anywhere)
        if not isinstance(found, TcpAddress):
            raise AddressError(f"metrics: expected HOST:PORT, got {address!r}")
        self._registry = registry
        self._serving = serving
        self._listen = found
        self._server: asyncio.Server | None = None
        self.address = found.target

    async def __aenter__(self) -> Self:
        host = self._listen.host.strip("[]")
        try:
            self._server = await asyncio.start_server(self._serve, host, self._listen.port, limit=_REQUEST_MAX)
        except OSError as error:
            raise AddressError(f"metrics: {self._listen.target}: {error.strerror}") from error
        port: int = self._server.sockets[0].getsockname()[1]
        self.address = f"{self._listen.host}:{port}"
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

    def _answer(self, head: bytes) -> _Answer:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"GET\n"
        if path == b"/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path == b"/healthz":
            serving = self._serving()
            status = HTTPStatus.OK if serving else HTTPStatus.SERVICE_UNAVAILABLE
            return status, _TEXT, b"SERVING\n" if serving else b"NOT_SERVING\n"
        return HTTPStatus.NOT_FOUND, _TEXT, b"/metrics, /healthz\n"


def _response(status: HTTPStatus, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


class AdminGrpc:
    """channelz (which connections and streams gRPC has, in this whole process), health and reflection."""

    def __init__(self, healths: health.aio.HealthServicer, address: str) -> None:
        """Read the address; nothing is opened yet. Raises ``AddressError`` for one beyond loopback."""
        self._listen = parse_address(address, allow_insecure_tcp=True)
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        channelz.add_channelz_servicer(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(healths, self._server)
        channelz_name = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name
        names = (channelz_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.address = self._listen.target

    async def __aenter__(self) -> Self:
        try:
            self._bind()
        except RuntimeError as error:
            raise AddressError(f"admin: {self._listen.target}: {error}") from error
        await self._server.start()
        return self

    def _bind(self) -> None:
        match self._listen:
            case UnixAddress() as address:
                prepare_socket(address)
                with only_its_own_mode(address):
                    self._server.add_insecure_port(address.target)
            case TcpAddress() as address:
                port = self._server.add_insecure_port(address.target)
                self.address = f"{address.host}:{port}"

    async def __aexit__(self, *_error: object) -> None:
        await self._server.stop(None)
