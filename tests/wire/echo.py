"""A service with a method of each kind, which the descriptor pool knows, on a real server of gRPC's.

Each answers with what it was sent; ``seen`` has the requests that arrived, whatever became of the answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2

SERVICE = "tests.wire.Echo"
UNARY, UPLOAD, DOWNLOAD, BOTH = (f"/{SERVICE}/{name}" for name in ("Unary", "Upload", "Download", "Both"))


def _describe() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="tests/wire/echo.proto", package="tests.wire", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    service = file.service.add(name="Echo")
    for name, requests, responses in (
        ("Unary", False, False),
        ("Upload", True, False),
        ("Download", False, True),
        ("Both", True, True),
    ):
        value = ".google.protobuf.BytesValue"
        service.method.add(
            name=name, input_type=value, output_type=value, client_streaming=requests, server_streaming=responses
        )
    descriptor_pool.Default().Add(file)


_describe()


class Echo:
    """The servicer, for both kinds of server. Download sends each octet of its request as a message."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def _unary(self, request: bytes, _context: object) -> bytes:
        self.seen.append(request)
        return request

    def _upload(self, requests: Iterator[bytes], _context: object) -> bytes:
        return b"".join(self._noted(requests))

    def _download(self, request: bytes, _context: object) -> Iterator[bytes]:
        self.seen.append(request)
        yield from (bytes([octet]) for octet in request)

    def _both(self, requests: Iterator[bytes], _context: object) -> Iterator[bytes]:
        yield from self._noted(requests)

    def _noted(self, requests: Iterator[bytes]) -> Iterator[bytes]:
        for request in requests:
            self.seen.append(request)
            yield request

    async def _aio_unary(self, request: bytes, context: object) -> bytes:
        return self._unary(request, context)

    async def _aio_upload(self, requests: AsyncIterator[bytes], _context: object) -> bytes:
        received = [request async for request in requests]
        self.seen += received
        return b"".join(received)

    async def _aio_download(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        for each in self._download(request, context):
            yield each

    async def _aio_both(self, requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for request in requests:
            self.seen.append(request)
            yield request

    def handlers(self, *, aio: bool) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The methods by name."""
        made: Any = {
            "Unary": grpc.unary_unary_rpc_method_handler(self._aio_unary if aio else self._unary),
            "Upload": grpc.stream_unary_rpc_method_handler(self._aio_upload if aio else self._upload),
            "Download": grpc.unary_stream_rpc_method_handler(self._aio_download if aio else self._download),
            "Both": grpc.stream_stream_rpc_method_handler(self._aio_both if aio else self._both),
        }
        found: dict[str, grpc.RpcMethodHandler[Any, Any]] = made
        return found


@contextmanager
def serving(address: str, *, interceptors: tuple[Any, ...] = ()) -> Iterator[tuple[Echo, str]]:
    """A server with threads; yields the servicer and where it listens. A host's GetVm is echoed as well."""
    echo = Echo()
    server = grpc.server(ThreadPoolExecutor(8), interceptors=list(interceptors), options=[("grpc.so_reuseport", 0)])
    server.add_registered_method_handlers(SERVICE, echo.handlers(aio=False))
    server.add_registered_method_handlers("fpstate.v1.VmService", {"GetVm": echo.handlers(aio=False)["Unary"]})
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield echo, address.replace(":0", f":{port}") if not address.startswith("unix") else address
    finally:
        server.stop(0).wait()


@asynccontextmanager
async def aio_serving(address: str, *, interceptors: tuple[Any, ...] = ()) -> AsyncIterator[tuple[Echo, str]]:
    """A server on the test's event loop."""
    echo = Echo()
    server = grpc.aio.server(interceptors=interceptors)
    server.add_registered_method_handlers(SERVICE, echo.handlers(aio=True))
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield echo, address.replace(":0", f":{port}") if not address.startswith("unix") else address
    finally:
        await server.stop(0)


async def until(condition: Any) -> None:  # noqa: ANN401
    """Wait for a condition; the test's own limit of time is the end of it."""
    while not condition():  # noqa: ASYNC110 -- there is nobody to be woken by
        await asyncio.sleep(0.002)
