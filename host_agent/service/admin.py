"""The listeners for whoever runs the host: metrics and health over HTTP, channelz over gRPC. Apart from the host's own.

    GET /metrics    Prometheus
    GET /healthz    200 while the host serves, 503 once it drains; for probes that know no TLS

Both are for loopback or a unix socket; who gets there is trusted to look, and can change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Self

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from fpstated.link.http import Answer, HttpListener, health_page
from host_agent.service.address import (
    AddressError,
    TcpAddress,
    UnixAddress,
    only_its_own_mode,
    parse_address,
    prepare_socket,
)


class AdminHttp:
    """/metrics and /healthz on the host's own event loop."""

    def __init__(
        self, registry: CollectorRegistry, serving: Callable[[], bool], address: str, *, anywhere: bool = False
    ) -> None:
        """Read the address; nothing is opened yet. Raises ``AddressError`` for one beyond loopback."""
        found = parse_address(address, allow_insecure_tcp=True, tls=anywhere)
        if not isinstance(found, TcpAddress):
            raise AddressError(f"metrics: expected HOST:PORT, got {address!r}")

        def metrics() -> Answer:
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry)

        pages = {"/metrics": metrics, "/healthz": health_page(serving)}
        self._listen = found
        self._http = HttpListener(found.host.strip("[]"), found.port, pages)
        self.address = found.target

    async def __aenter__(self) -> Self:
        try:
            await self._http.__aenter__()
        except OSError as error:
            raise AddressError(f"metrics: {self._listen.target}: {error.strerror}") from error
        self.address = f"{self._listen.host}:{self._http.port}"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.__aexit__(*error)


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
