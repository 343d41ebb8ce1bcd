"""The second arrival of a unary request: sent over a connection of its own, as a proxy that hedges does."""

from __future__ import annotations

import asyncio
import base64
from contextlib import suppress
from typing import Final

import grpc

from fault_lab.live.proxy.http2 import Headers

_NS: Final = 1_000_000_000
#: What gRPC says itself with each call.
_OWN: Final = frozenset({b"te", b"content-type", b"user-agent", b"grpc-timeout", b"grpc-encoding"})
_LIMIT_S: Final = 20.0


async def send_copy(target: str, headers: Headers, octets: bytes, delay_ns: int) -> None:
    """Make the call again, and throw its answer away: the first one counts. A compressed message is not doubled."""
    if octets[:1] != b"\0":
        return
    await asyncio.sleep(delay_ns / _NS)
    said = dict(headers)
    metadata = [(name.decode(), _value(name, value)) for name, value in headers if _is_metadata(name)]
    options = [("grpc.default_authority", said.get(b":authority", b"localhost").decode()), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(said[b":path"].decode())
        with suppress(grpc.aio.AioRpcError):  # a refusal is an answer as well
            await call(octets[5:], metadata=metadata, timeout=_LIMIT_S)


def _is_metadata(name: bytes) -> bool:
    return not name.startswith((b":", b"grpc-")) and name not in _OWN


def _value(name: bytes, value: bytes) -> str | bytes:
    """Binary metadata is encoded by gRPC itself."""
    if not name.endswith(b"-bin"):
        return value.decode("ascii", "replace")
    return base64.b64decode(value + b"=" * (-len(value) % 4))
