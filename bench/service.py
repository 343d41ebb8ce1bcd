"""The service on a socket, beside a bare grpc.aio server that answers with the same bytes: calls and streams.

Host, floor and client are three processes on the same machine, over unix sockets.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

import grpc
from fpstate.v1 import session_pb2, vm_pb2

from bench.echo import messages_of
from bench.pairs import Figures, Pairs
from bench.process import running_echo, running_host
from bench.report import Row, by_turns_row
from bench.traffic import Guests, blocks, echo_stream, host_stream, open_guests

_GET_VM: Final = "/fpstate.v1.VmService/GetVm"
_KEEP_ALIVE: Final = "/fpstate.v1.GuestSessionService/KeepAlive"
#: How often host and floor are started anew: where a process comes to lie in memory is worth some per cent either way.
LAUNCHES: Final = 5
#: Of every call, as our clients set one.
DEADLINE_S: Final = 10.0
#: Calls of a block, and pairs of blocks.
CALLS: Final = 40
CALL_PAIRS: Final = 20
#: Batches of a block, and pairs of blocks.
BATCHES: Final = 20
BATCH_PAIRS: Final = 10


def rows(fraction: int = 1) -> Iterator[Row]:
    """Every figure about the service, with one ``fraction``-th of the blocks."""
    calls = {method: Figures() for method in (_GET_VM, _KEEP_ALIVE)}
    streams = {packed: Figures() for packed in (False, True)}
    launches = max(1, LAUNCHES // fraction)
    for _ in range(launches):
        folder = Path(tempfile.mkdtemp(prefix="fpstated-bench-"))
        try:
            with running_host(folder, "--ephemeral") as host:
                asyncio.run(_measure(folder, host, fraction, calls, streams))
        finally:
            shutil.rmtree(folder)
    for method, figures in calls.items():
        yield _unary_row(method.rpartition("/")[2], figures.pairs())
    for packed, figures in streams.items():
        yield _stream_row(figures.pairs(), packed=packed)


async def _measure(
    folder: Path, host: str, fraction: int, calls: dict[str, Figures], streams: dict[bool, Figures]
) -> None:
    """What one launch of the processes adds."""
    async with grpc.aio.insecure_channel(host) as channel:
        guests = await open_guests(channel, "bench")
        requests = {
            _GET_VM: vm_pb2.GetVmRequest(name="vms/bench"),
            _KEEP_ALIVE: session_pb2.KeepAliveRequest(session=guests.session, epoch=guests.epoch),
        }
        replies = {method: await _call(channel, method)(request) for method, request in requests.items()}
        with running_echo(folder, {method: reply.SerializeToString() for method, reply in replies.items()}) as echo:
            async with grpc.aio.insecure_channel(echo) as bare:
                for method, request in requests.items():
                    await _unary(channel, bare, method, request, calls[method], max(2, CALL_PAIRS // fraction))
                for packed, figures in streams.items():
                    pairs = max(2, BATCH_PAIRS // fraction)
                    await _streamed(channel, bare, guests, figures, packed=packed, pairs=pairs)


def _call(channel: grpc.aio.Channel, method: str) -> Any:  # noqa: ANN401 -- each method has its own types
    request_class, reply_class = messages_of(method)
    return channel.unary_unary(
        method, request_serializer=request_class.SerializeToString, response_deserializer=reply_class.FromString
    )


async def _unary(
    channel: grpc.aio.Channel,
    bare: grpc.aio.Channel,
    method: str,
    request: Any,  # noqa: ANN401
    figures: Figures,
    pairs: int,
) -> None:
    """The median time of a call in microseconds, one after the other."""

    async def block(on: grpc.aio.Channel) -> float:
        call = _call(on, method)
        seconds = []
        for _ in range(CALLS):
            begin_s = time.perf_counter()
            await call(request, timeout=DEADLINE_S)
            seconds.append(time.perf_counter() - begin_s)
        return median(seconds) * 1e6

    await figures.take(lambda: block(channel), lambda: block(bare), pairs=pairs)


def _unary_row(name: str, pairs: Pairs) -> Row:
    note = "floor: a bare grpc.aio server that reads the same request and sends the same reply."
    return by_turns_row(f"{name}, --ephemeral, p50 of one call after the other", "us", pairs, at_most=1.10, note=note)


async def _streamed(
    channel: grpc.aio.Channel, bare: grpc.aio.Channel, guests: Guests, figures: Figures, *, packed: bool, pairs: int
) -> None:
    """Events a second on one stream, and of the same messages sent back by the bare server."""
    ours, floor = host_stream(channel), echo_stream(bare)
    await ours.open(guests)
    await floor.open(guests)
    source = blocks(guests, packed=packed, batches=BATCHES)
    given: list[list[session_pb2.AttachRequest]] = []

    async def block() -> float:
        given.append(next(source))
        return await ours.run(given[-1])

    async def echo_block() -> float:
        if not given:
            given.append(next(source))
        return await floor.run(given[-1])

    try:
        await figures.take(block, echo_block, pairs=pairs)
    finally:
        ours.cancel()
        floor.cancel()


def _stream_row(pairs: Pairs, *, packed: bool) -> Row:
    form = "packed" if packed else "as messages"
    return by_turns_row(
        f"one stream of 256-event batches {form}, in memory",
        "events/s",
        pairs,
        at_least=0.9 if packed else 0.6,
        note="floor: a bare grpc.aio server that reads the same messages and sends them back; four batches under way.",
    )
