"""The floor of the service's rows: a bare grpc.aio server that answers and does nothing else, in a process of its own.

    python -m bench.echo unix:PATH '{"/fpstate.v1.VmService/GetVm": "0a04..."}'

Each unary method of the argument reads its request as the host does, and answers with the one reply it was given.
Attach sends every message back. Same library, same event loop, same message classes; no layer, no state, no journal.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import grpc
from fpstate.v1 import (  # noqa: F401 -- so that their methods are known
    host_pb2,
    session_pb2,
    vm_pb2,
)
from google.protobuf import descriptor_pool, message_factory

ATTACH: Final = "/fpstate.v1.GuestSessionService/Attach"


def messages_of(method: str) -> tuple[Any, Any]:
    """The classes of a method's request and reply, as gRPC spells a method."""
    _, service, name = method.split("/")
    found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    return message_factory.GetMessageClass(found.input_type), message_factory.GetMessageClass(found.output_type)


def _unary(method: str, raw: bytes) -> grpc.RpcMethodHandler[Any, Any]:
    request_class, reply_class = messages_of(method)
    reply = reply_class.FromString(raw)

    async def answer(_request: object, _context: object) -> object:
        return reply

    return grpc.unary_unary_rpc_method_handler(
        answer, request_deserializer=request_class.FromString, response_serializer=reply_class.SerializeToString
    )


async def _echo(requests: AsyncIterator[Any], _context: object) -> AsyncIterator[Any]:
    async for request in requests:
        yield request


async def _serve(address: str, replies: Mapping[str, bytes]) -> None:
    server = grpc.aio.server()
    handlers: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for method, raw in replies.items():
        _, service, name = method.split("/")
        handlers.setdefault(service, {})[name] = _unary(method, raw)
    _, service, name = ATTACH.split("/")
    request_class, _ = messages_of(ATTACH)
    handlers.setdefault(service, {})[name] = grpc.stream_stream_rpc_method_handler(
        _echo, request_deserializer=request_class.FromString, response_serializer=request_class.SerializeToString
    )
    for service, methods in handlers.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], {key: bytes.fromhex(raw) for key, raw in json.loads(sys.argv[2]).items()}))
