"""A server as a process of its own: the host, or the bare one that it is held against."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc

READY_S = 60.0


@contextmanager
def running_host(folder: Path, *arguments: str) -> Iterator[str]:
    """``fpstated host`` with arguments, on a socket in ``folder``; yields its address."""
    address = f"unix:{folder.absolute()}/host.sock"
    with _running(address, "-m", "fpstated", "host", "--listen", address, "--calls-per-second", "0", *arguments):
        yield address


@contextmanager
def running_echo(folder: Path, replies: Mapping[str, bytes]) -> Iterator[str]:
    """The bare server of ``bench.echo``."""
    address = f"unix:{folder.absolute()}/echo.sock"
    given = json.dumps({method: raw.hex() for method, raw in replies.items()})
    with _running(address, "-m", "bench.echo", address, given):
        yield address


@contextmanager
def _running(address: str, *arguments: str) -> Iterator[None]:
    """The process, from when it answers to its end."""
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.DEVNULL)
    try:
        with grpc.insecure_channel(address, options=[("grpc.max_reconnect_backoff_ms", 100)]) as channel:
            grpc.channel_ready_future(channel).result(timeout=READY_S)
        yield
    finally:
        process.terminate()
        process.wait(READY_S)
