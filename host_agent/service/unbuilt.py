"""The calls of the contract that this release does not have, and the capability each would need.

Their services are registered, so that reflection shows the whole contract, and they answer UNIMPLEMENTED with an
ErrorInfo.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from fpstate.v1 import watch_pb2
from google.protobuf.descriptor import ServiceDescriptor

from host_agent.service.errors import unimplemented
from host_agent.service.layers import Behaviour, Layer, Method


def _every_method(service: ServiceDescriptor, capability: str, *, built: tuple[str, ...] = ()) -> dict[str, str]:
    names = [method.name for method in service.methods if method.name not in built]
    return {f"/{service.full_name}/{name}": capability for name in names}


#: Capability by method, as gRPC spells a method: `/package.Service/Method`.
UNBUILT: Final[dict[str, str]] = {
    **_every_method(watch_pb2.DESCRIPTOR.services_by_name["WatchService"], "watch"),
}


class UnbuiltInterceptor(Layer):
    """Answers the calls of ``UNBUILT`` before any servicer sees them."""

    def wrap(self, behaviour: Behaviour, method: Method) -> Behaviour:
        """The servicer's behaviour, or one of the same kind that refuses."""
        capability = UNBUILT.get(method.path)
        return behaviour if capability is None else _refusing(method, capability)


def _refusing(method: Method, capability: str) -> Behaviour:
    async def unary(_request: object, _context: object) -> object:
        raise unimplemented(method.path, capability)

    async def stream(_request: object, _context: object) -> AsyncIterator[object]:
        raise unimplemented(method.path, capability)
        yield  # type: ignore[unreachable]  # what makes it a stream

    return stream if method.responses else unary
