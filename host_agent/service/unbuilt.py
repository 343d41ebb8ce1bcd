"""The calls of the contract that this release does not have, and the capability each would need.

Their services are registered, so that reflection shows the whole contract, and they answer UNIMPLEMENTED with an
ErrorInfo.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from fpstate.v1 import migration_pb2, watch_pb2
from google.protobuf.descriptor import ServiceDescriptor

from host_agent.service.errors import unimplemented
from host_agent.service.interceptor import Continuation, Handler


def _every_method(service: ServiceDescriptor, capability: str, *, built: tuple[str, ...] = ()) -> dict[str, str]:
    names = [method.name for method in service.methods if method.name not in built]
    return {f"/{service.full_name}/{name}": capability for name in names}


#: Capability by method, as gRPC spells a method: `/package.Service/Method`.
UNBUILT: Final[dict[str, str]] = {
    **_every_method(migration_pb2.DESCRIPTOR.services_by_name["MigrationService"], "migration", built=("CheckCompat",)),
    **_every_method(watch_pb2.DESCRIPTOR.services_by_name["WatchService"], "watch"),
}


class UnbuiltInterceptor(grpc.aio.ServerInterceptor):
    """Answers the calls of ``UNBUILT`` before any servicer sees them."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the servicer's handler, or one of the same kind that refuses."""
        handler = await continuation(handler_call_details)
        capability = UNBUILT.get(handler_call_details.method)
        if handler is None or capability is None:
            return handler
        return _refusing(handler, handler_call_details.method, capability)


def _refusing(handler: Handler, method: str, capability: str) -> Handler:
    async def unary(_request: object, _context: object) -> object:
        raise unimplemented(method, capability)

    async def stream(_request: object, _context: object) -> AsyncIterator[object]:
        raise unimplemented(method, capability)
        yield  # type: ignore[unreachable]  # what makes it a stream

    kinds: dict[tuple[bool, bool], tuple[Any, Any]] = {
        (False, False): (grpc.unary_unary_rpc_method_handler, unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, stream),
    }
    make, refuse = kinds[handler.request_streaming, handler.response_streaming]
    made: Handler = make(
        refuse, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
    )
    return made
