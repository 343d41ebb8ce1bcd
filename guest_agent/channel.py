"""The connection to a host: which addresses there are, and what a channel is told.

One channel serves a whole session. It pings a silent host, retries unary calls on UNAVAILABLE alone, and connects again
by itself; a stream that breaks is the session's business.
"""

from __future__ import annotations

import json
import re
from typing import Any

import grpc

from fpstated.link.tls import ClientTls

#: Longer than the least that a host permits between pings (10 s); shorter than what makes a vCPU thread impatient.
KEEPALIVE_MS = 25_000
KEEPALIVE_TIMEOUT_MS = 10_000

#: The services whose unary calls may be sent again when the host could not be reached: reads, and what carries a
#: request_id, an epoch, a proof or a sequence number, so that the second arrival is recognised.
_RETRIED_SERVICES = (
    "fpstate.v1.HostService",
    "fpstate.v1.VmService",
    "fpstate.v1.VcpuService",
    "fpstate.v1.TaskService",
    "fpstate.v1.MigrationService",
    "fpstate.fault.v1.FaultService",
)
_RETRIED_SESSION_CALLS = ("OpenSession", "KeepAlive", "CloseSession", "SubmitEvents", "WaitOutcome", "ListSessions")

#: Source: grpc/proposal A6-client-retries; AIP-194: UNAVAILABLE is the one code that is safe to retry blindly.
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}

SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                *({"service": service} for service in _RETRIED_SERVICES),
                *({"service": "fpstate.v1.GuestSessionService", "method": call} for call in _RETRIED_SESSION_CALLS),
            ],
            "retryPolicy": _RETRY_POLICY,
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # A vCPU may wait for a decision for an hour without a byte on the wire: keep on pinging.
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Which bounds one attempt too: a busy host needs more than an instant to take a connection.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # The connection is this channel's own, so that closing or cutting one session's leaves the others alone.
    ("grpc.use_local_subchannel_pool", 1),
    # A VMM talks to its own machine, or to a host by name, but never through a web proxy.
    ("grpc.enable_http_proxy", 0),
)

_SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")
_HOST_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s]+):(\d{1,5})")
_SUN_PATH_MAX = 107


def check_address(address: str) -> str:
    """Return `address` if it is one a host can be reached at: `unix:PATH`, `host:port`, or another gRPC target.

    Raises:
        ValueError: it is none; the text says what was expected.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        path = rest.removeprefix("//")
        if not path or path.endswith("/") or len(path.encode(errors="replace")) > _SUN_PATH_MAX:
            raise ValueError(
                f"address: expected unix: and a file's path of 1 to {_SUN_PATH_MAX} bytes, got {address!r}"
            )
        return address
    if address.startswith(_SCHEMES) and rest:
        return address
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise ValueError(f"address: expected unix:PATH or HOST:PORT, got {address!r}")
    return address


def connect(address: str, tls: ClientTls | None = None) -> grpc.Channel:
    """Make a channel for blocking calls. It connects at its first call, and again whenever it has to.

    Raises:
        ValueError: no address, see `check_address`; or files that no TLS can be made of.
    """
    if tls is None:
        return grpc.insecure_channel(check_address(address), options=CHANNEL_OPTIONS)
    return grpc.secure_channel(check_address(address), tls.credentials(), options=CHANNEL_OPTIONS)


def connect_async(address: str, tls: ClientTls | None = None) -> grpc.aio.Channel:
    """Make a channel for grpc.aio calls, in a running event loop.

    Raises:
        ValueError: no address, see `check_address`; or files that no TLS can be made of.
    """
    if tls is None:
        return grpc.aio.insecure_channel(check_address(address), options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(check_address(address), tls.credentials(), options=CHANNEL_OPTIONS)


def wait_for_host(channel: grpc.Channel, *, timeout_s: float) -> None:
    """Wait until the channel is connected; for a guest that may be started before its host.

    Raises:
        TimeoutError: nobody answered in time.
    """
    ready = grpc.channel_ready_future(channel)
    try:
        ready.result(timeout=timeout_s)
    except grpc.FutureTimeoutError as error:
        raise TimeoutError(f"no host answered within {timeout_s:g} s") from error
    finally:
        ready.cancel()
