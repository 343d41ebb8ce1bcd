"""The layer that refuses what is no request at all: bytes that are no message of the method's type.

gRPC parses a message before it asks any interceptor, and answers UNKNOWN by itself where that fails, with a traceback
in the log for whoever wants to fill it. So here parsing never fails: what cannot be read becomes ``Unreadable``, and
this layer refuses it as any other mistake of a caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from host_agent.service.errors import Failure, field_invalid
from host_agent.service.layers import Context, Layer, Method

Deserializer = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Bytes that are no message: what was expected, how many came, and what the parser says of them."""

    expected: str
    size_bytes: int
    why: str

    def failure(self) -> Failure:
        """What the caller hears."""
        return field_invalid("request", self.expected, f"{self.size_bytes} bytes that are none: {self.why}")


def tolerant(deserializer: Deserializer) -> Deserializer:
    """A deserializer of the same messages that never raises; ``deserializer`` is a message class's ``FromString``."""
    message = getattr(deserializer, "__self__", None)
    expected = message.DESCRIPTOR.full_name if message is not None else "a message"

    def read(raw: bytes) -> Any:  # noqa: ANN401 -- each method has its own type
        try:
            return deserializer(raw)
        except DecodeError as error:
            return Unreadable(expected, len(raw), str(error))

    return read


class DecodeLayer(Layer):
    """Goes with ``tolerant``: inside of it nobody ever sees an ``Unreadable``."""

    def enter(self, method: Method, request: Any, context: Context) -> tuple[Any, Any]:  # noqa: ANN401
        """Refuse a request that is none; of a stream, the first that is none, when its turn comes."""
        if method.requests:
            return _readable(request), None
        if isinstance(request, Unreadable):
            raise request.failure()
        return request, None


async def _readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, Unreadable):
            raise request.failure()
        yield request
