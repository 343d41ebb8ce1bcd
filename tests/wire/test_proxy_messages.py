"""What ``link.message`` does to real calls through a proxy that reads their messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from fault_lab.live.points import LiveFaults
from fault_lab.live.proxy import Proxy
from tests.wire.echo import BOTH, DOWNLOAD, UNARY, UPLOAD, Echo, aio_serving, until
from tests.wire.plans import armed

LINK = ("vms/a", "host")
THERE, BACK = "vms/a->host", "host->vms/a"


@dataclass
class World:
    """A server, a proxy in front of it, and a channel through the proxy."""

    echo: Echo
    proxy: Proxy
    channel: grpc.aio.Channel
    faults: LiveFaults

    async def call(self, request: bytes, timeout: float = 10) -> str | bytes:
        """Make a unary call: the answer, or the name of the status."""
        try:
            unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(UNARY)
            return await unary(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return error.code().name

    async def read(self, request: bytes) -> list[str | bytes]:
        """Read a stream: its messages, and the name of the status that it ended with."""
        heard: list[str | bytes] = []
        download: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(DOWNLOAD)
        try:
            async for message in download(request, timeout=10):
                heard.append(message)  # noqa: PERF401 -- what was heard before an error counts
        except grpc.aio.AioRpcError as error:
            return [*heard, error.code().name]
        return [*heard, "OK"]

    def fired(self) -> list[tuple[str, int]]:
        """Which hits of which link fired."""
        return [(each.entity, each.hit) for each in self.faults.fired]


@asynccontextmanager
async def world(folder: Path, *faults: str, noticed_ns: int = 10**6) -> AsyncIterator[World]:
    """Unix sockets, and no retries of gRPC's own, so that each call is one request."""
    live = armed(*faults)
    async with (
        aio_serving(f"unix:{folder}/echo") as (echo, address),
        Proxy(f"unix:{folder}/proxy", address, link=LINK, faults=live, noticed_ns=noticed_ns) as proxy,
        grpc.aio.insecure_channel(proxy.address, options=[("grpc.enable_retries", 0)]) as channel,
    ):
        yield World(echo, proxy, channel, live)


def fault(action: str, *, link: str = THERE, nth: int | None = 1) -> str:
    """One fault at one way of the link."""
    which = f"attributes: {{fail-nth: {nth}}}, " if nth else ""
    return f"point: link.message, scope: {{entity: '{link}'}}, {which}action: {{{action}}}"


async def upload(channel: grpc.aio.Channel, *requests: bytes) -> bytes:
    """Send a stream of requests; the one answer."""

    async def each() -> AsyncIterator[bytes]:
        for request in requests:
            yield request

    call: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(UPLOAD)
    return await call(each(), timeout=10)


async def both(channel: grpc.aio.Channel, *requests: bytes) -> list[bytes]:
    """Send a stream of requests; the answers."""

    async def each() -> AsyncIterator[bytes]:
        for request in requests:
            yield request

    call: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(BOTH)
    return [reply async for reply in call(each(), timeout=10)]


@pytest.mark.asyncio
async def test_calls_of_each_kind_pass_and_their_messages_are_numbered(tmp_path: Path) -> None:
    """Without a fault that fires everything arrives, and each message is one hit, whatever its size."""
    large = bytes(range(256)) * 4096
    async with world(tmp_path) as w:
        assert await w.call(b"one") == b"one"
        assert await w.call(large[: 1 << 20]) == large[: 1 << 20]
        assert await w.read(b"abc") == [b"a", b"b", b"c", "OK"]
        assert await upload(w.channel, b"x" * 100_000, b"", b"y") == b"x" * 100_000 + b"y"
        assert await both(w.channel, b"1" * 70_000, b"2") == [b"1" * 70_000, b"2"]
        stats = w.proxy.stats()
    assert (stats.there.link, stats.there.messages) == (THERE, 1 + 1 + 1 + (1 + 3) + (1 + 2))
    assert (stats.back.link, stats.back.messages) == (BACK, 1 + 1 + (3 + 1) + 1 + (2 + 1))
    assert (stats.opaque, stats.there.fired, stats.back.fired) == (0, 0, 0)


@pytest.mark.asyncio
async def test_a_request_that_is_lost_never_arrives(tmp_path: Path) -> None:
    """Its caller's deadline tells; the next one is carried on the same connection."""
    async with world(tmp_path, fault("drop: {}", nth=2)) as w:
        assert [await w.call(b"1"), await w.call(b"2", 0.2), await w.call(b"3")] == [b"1", "DEADLINE_EXCEEDED", b"3"]
        assert w.fired() == [(THERE, 2)]
        assert w.echo.seen == [b"1", b"3"]
        assert w.proxy.stats().accepted == 1


@pytest.mark.asyncio
async def test_a_reply_that_is_lost_was_carried_out(tmp_path: Path) -> None:
    """The server has seen the request; its caller cannot tell."""
    async with world(tmp_path, fault("drop: {}", link=BACK, nth=2)) as w:
        assert [await w.call(b"1"), await w.call(b"2", 0.5), await w.call(b"3")] == [b"1", "DEADLINE_EXCEEDED", b"3"]
        assert w.fired() == [(BACK, 2)]
        assert w.echo.seen == [b"1", b"2", b"3"]


@pytest.mark.asyncio
async def test_lost_messages_use_no_window_up(tmp_path: Path) -> None:
    """Many times the connection's window can be lost on it, and it still carries."""
    octets = b"x" * 60_000
    async with world(tmp_path, fault("drop: {}", nth=None)) as w:
        w.faults.enter("warm")
        assert await w.call(b"") == b""
        w.faults.enter("chaos")
        lost = await asyncio.gather(*(w.call(octets, 0.5) for _ in range(20)))
        assert set(lost) == {"DEADLINE_EXCEEDED"}
        w.faults.enter("settle")
        assert await w.call(octets) == octets
        assert w.proxy.stats().accepted == 1
        assert len(w.fired()) == 20


@pytest.mark.asyncio
async def test_a_damaged_message_is_noticed_and_not_obeyed(tmp_path: Path) -> None:
    """Of a request: it does not arrive. Of an answer: it was carried out. The call is UNAVAILABLE at once."""
    async with world(tmp_path, fault("corrupt: {}", nth=1), fault("corrupt: {}", link=BACK, nth=1)) as w:
        assert [await w.call(b"1"), await w.call(b"2"), await w.call(b"3")] == ["UNAVAILABLE", "UNAVAILABLE", b"3"]
        assert w.fired() == [(THERE, 1), (BACK, 1)]
        assert w.echo.seen == [b"2", b"3"]


@pytest.mark.asyncio
async def test_a_request_that_is_doubled_arrives_twice(tmp_path: Path) -> None:
    """The second arrival is a whole call, with the same octets; the first answer counts."""
    async with world(tmp_path, fault("duplicate: {copies: 2}")) as w:
        assert await w.call(b"again") == b"again"
        await until(lambda: len(w.echo.seen) == 3)
        assert w.echo.seen == [b"again"] * 3
        assert w.fired() == [(THERE, 1)]


@pytest.mark.asyncio
async def test_calls_overtake_one_that_is_reordered(tmp_path: Path) -> None:
    """Two others arrive first, though they were sent later, on the same connection."""
    async with world(tmp_path, fault("reorder: {depth: 2}")) as w:
        first = asyncio.create_task(w.call(b"1"))
        await until(lambda: w.fired() == [(THERE, 1)])
        assert [await w.call(b"2"), await w.call(b"3"), await first] == [b"2", b"3", b"1"]
        assert w.echo.seen in ([b"2", b"3", b"1"], [b"2", b"1", b"3"])
        assert w.echo.seen[0] == b"2"


@pytest.mark.asyncio
async def test_what_is_held_waits_until_the_plan_heals(tmp_path: Path) -> None:
    """It and all behind it on that way, and nothing on the other; then they arrive in order."""
    async with world(tmp_path, fault("hold: {}")) as w:
        calls = [asyncio.create_task(w.call(bytes([nr]))) for nr in range(3)]
        await until(lambda: w.proxy.stats().there.messages == 3)
        assert w.echo.seen == []
        w.faults.enter("heal")
        assert await asyncio.gather(*calls) == [b"\0", b"\1", b"\2"]
        assert sorted(w.echo.seen) == [b"\0", b"\1", b"\2"]
        assert w.fired() == [(THERE, 1)]


@pytest.mark.asyncio
async def test_a_delayed_message_of_a_stream_is_not_overtaken(tmp_path: Path) -> None:
    """The second message waits behind the first, and so does the status."""
    async with world(tmp_path, fault("delay: {min: 50ms}", link=BACK)) as w:
        assert await w.read(b"abc") == [b"a", b"b", b"c", "OK"]
        assert w.fired() == [(BACK, 1)]


@pytest.mark.asyncio
async def test_a_stream_that_loses_a_message_breaks(tmp_path: Path) -> None:
    """What came before was heard, nothing behind it is, and its end is UNAVAILABLE, as keep-alives would find."""
    async with world(tmp_path, fault("drop: {}", link=BACK, nth=2)) as w:
        assert await w.read(b"abc") == [b"a", "UNAVAILABLE"]
        assert w.fired() == [(BACK, 2)]
        assert await w.read(b"d") == [b"d", "OK"]
        assert w.proxy.stats().accepted == 1


@pytest.mark.asyncio
async def test_a_stream_with_a_damaged_message_breaks(tmp_path: Path) -> None:
    """What came before it was heard."""
    async with world(tmp_path, fault("corrupt: {}", link=BACK, nth=2)) as w:
        assert await w.read(b"abc") == [b"a", "UNAVAILABLE"]
        assert w.fired() == [(BACK, 2)]


@pytest.mark.asyncio
async def test_hits_are_numbered_whether_or_not_a_fault_stands(tmp_path: Path) -> None:
    """A schedule names the third request, and that one it is, though nothing else was armed before."""
    extra = f"schedule: {{hits: [{{point: link.message, entity: '{THERE}', hit: 3, action: {{drop: {{}}}}}}]}}\n"
    live = armed(extra=extra)
    async with (
        aio_serving(f"unix:{tmp_path}/echo") as (echo, address),
        Proxy(f"unix:{tmp_path}/proxy", address, link=LINK, faults=live) as proxy,
        grpc.aio.insecure_channel(proxy.address) as channel,
    ):
        w = World(echo, proxy, channel, live)
        heard = [await w.call(bytes([nr]), 0.3 if nr == 3 else 10) for nr in range(1, 5)]
    assert heard == [b"\1", b"\2", "DEADLINE_EXCEEDED", b"\4"]
    assert w.fired() == [(THERE, 3)]
