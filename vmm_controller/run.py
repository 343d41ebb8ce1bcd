"""A controller as a process: signals, a channel, and the timeline as JSON lines."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from typing import Final, TextIO

import grpc
import grpc.aio

from fpstated.link.http import HttpListener, health_page
from fpstated.link.tls import ClientTls
from vmm_controller.config import ControllerConfig
from vmm_controller.controller import Controller
from vmm_controller.error import CallError
from vmm_controller.timeline import Event, OnEvent

#: gRPC by itself waits up to two minutes between tries to connect; the loop's own backoff is to be the longer one.
#: And it never asks whether a silent host is still there: a watch would go on for ever on a connection that is dead.
#: Longer than the least that a host permits between pings (10 s).
CHANNEL_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 25_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),  # which bounds one attempt too
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def run_controller(
    address: str,
    config: ControllerConfig,
    *,
    tls: ClientTls | None = None,
    out: TextIO | None = None,
    metrics: tuple[str, int] | None = None,
) -> int:
    """Run a controller against the host at `address` (a gRPC target: `unix:PATH`, `HOST:PORT`) until a signal.

    `tls` is for a host with mutual TLS. The timeline goes to `out` (standard output unless given), one JSON object per
    line, flushed, each with `time_s`, the system's clock in seconds. `metrics` is the host and port where metrics and
    health are served over HTTP; they need prometheus_client.

    Returns the exit status: 0 after SIGTERM or SIGINT, with control released; 1 where the host refused for good or
    another controller took the scope, with the reason on standard error. Raises ValueError for files that no TLS can be
    made of, before anything is done, and OSError where metrics cannot be served.
    """
    credentials = None if tls is None else tls.credentials()
    lines = JsonLines(out or sys.stdout)
    return asyncio.run(_serving(address, credentials, config, lines, metrics))


async def _serving(
    address: str,
    credentials: grpc.ChannelCredentials | None,
    config: ControllerConfig,
    lines: JsonLines,
    metrics: tuple[str, int] | None,
) -> int:
    """Run with its metrics, if it is to have any."""
    if metrics is None:
        return await _run(address, credentials, config, lines.write)
    from vmm_controller.metrics import ControllerMetrics  # noqa: PLC0415 -- prometheus_client is none of the base's

    meter = ControllerMetrics()

    def told(event: Event) -> None:
        meter(event)
        lines.write(event)

    pages = {"/metrics": meter.page, "/healthz": health_page(lambda: meter.watching)}
    async with HttpListener(*metrics, pages) as listener:
        sys.stderr.write(f"fpstated controller: metrics on http://{metrics[0]}:{listener.port}/metrics\n")
        return await _run(address, credentials, config, told)


async def _run(
    address: str, credentials: grpc.ChannelCredentials | None, config: ControllerConfig, on_event: OnEvent
) -> int:
    async with _channel(address, credentials) as channel:
        controller = Controller(channel, config, on_event=on_event)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, controller.stop)
        try:
            await controller.run()
        except CallError as error:
            sys.stderr.write(f"fpstated controller: {error}\n")
            return 1
    return 0


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


class JsonLines:
    """Writes events as JSON lines; once nobody reads them it stops writing, and the controller goes on deciding."""

    def __init__(self, out: TextIO) -> None:
        self._out: TextIO | None = out

    def write(self, event: Event) -> None:
        """Write one event, with the time it is."""
        if self._out is None:
            return
        try:
            self._out.write(json.dumps({"time_s": round(time.time(), 6), **event}) + "\n")
            self._out.flush()
        except OSError as error:
            self._out = None
            sys.stderr.write(f"fpstated controller: the timeline ends here: {error}\n")
