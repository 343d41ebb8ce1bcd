"""What a proxy does to the bytes of real calls: over unix sockets and TCP, for blocking and asynchronous clients."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from fault_lab.live.proxy import Proxy, Trouble
from tests.wire.echo import UNARY, Echo, aio_serving, serving, until

#: What the proxy listens at, and what the server does.
TRANSPORTS = [
    pytest.param("unix", "unix", id="unix to unix"),
    pytest.param("unix", "tcp", id="unix to TCP"),
    pytest.param("tcp", "unix", id="TCP to unix"),
    pytest.param("tcp", "tcp", id="TCP to TCP"),
]
#: gRPC's own retries would hide what a call meets.
OPTIONS = [("grpc.enable_retries", 0), ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50)]


@dataclass
class World:
    """A server, and a proxy in front of it."""

    echo: Echo
    proxy: Proxy
    channel: grpc.aio.Channel

    async def call(self, request: bytes, timeout: float = 10) -> str | bytes:
        """Make a unary call: the answer, or the name of the status."""
        unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(UNARY)
        try:
            return await unary(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return error.code().name

    async def call_again(self, request: bytes) -> str | bytes:
        """Call until it is not UNAVAILABLE: over a new connection, where the old one has ended."""
        while (answer := await self.call(request)) == "UNAVAILABLE":
            pass
        return answer


@asynccontextmanager
async def world(folder: Path, listen: str = "unix", serve: str = "unix") -> AsyncIterator[World]:
    """A proxy that asks for no messages."""
    addresses = {"unix": f"unix:{folder}", "tcp": "127.0.0.1:0"}
    server = f"unix:{folder}/echo" if serve == "unix" else addresses["tcp"]
    async with (
        aio_serving(server) as (echo, address),
        Proxy(f"unix:{folder}/proxy" if listen == "unix" else addresses["tcp"], address) as proxy,
        grpc.aio.insecure_channel(proxy.address, options=OPTIONS) as channel,
    ):
        yield World(echo, proxy, channel)


@pytest.mark.asyncio
@pytest.mark.parametrize(("listen", "serve"), TRANSPORTS)
async def test_every_transport_carries_and_is_cut_and_carries_again(tmp_path: Path, listen: str, serve: str) -> None:
    """A call, a cut, a call over a new connection, a reset, a call."""
    async with world(tmp_path, listen, serve) as w:
        large = os.urandom(300_000)
        assert await w.call(large) == large
        w.proxy.cut()
        assert await w.call_again(b"2") == b"2"
        w.proxy.reset()
        assert await w.call_again(b"3") == b"3"
        stats = w.proxy.stats()
    assert (stats.accepted, stats.there.messages) == (3, 0)
    assert min(stats.there.bytes, stats.back.bytes) > len(large)


@pytest.mark.asyncio
@pytest.mark.parametrize(("listen", "serve"), TRANSPORTS)
async def test_a_blocking_client_meets_the_same(tmp_path: Path, listen: str, serve: str) -> None:
    """A call that waits behind a stalled way, and one after it has healed; the server has threads."""

    def call(address: str, request: bytes, timeout: float) -> str | bytes:
        with grpc.insecure_channel(address, options=OPTIONS) as channel:
            unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(UNARY)
            try:
                return unary(request, timeout=timeout)
            except grpc.RpcError as error:
                return str(error.code().name)

    with serving(f"unix:{tmp_path}/echo" if serve == "unix" else "127.0.0.1:0") as (echo, address):
        async with Proxy(f"unix:{tmp_path}/proxy" if listen == "unix" else "127.0.0.1:0", address) as proxy:
            assert await asyncio.to_thread(call, proxy.address, b"1", 10) == b"1"
            proxy.there.set(Trouble(stalled=True))
            assert await asyncio.to_thread(call, proxy.address, b"2", 0.2) == "DEADLINE_EXCEEDED"
            proxy.heal()
            assert await asyncio.to_thread(call, proxy.address, b"3", 10) == b"3"
            assert echo.seen[0] == b"1"
            assert echo.seen[-1] == b"3"


@pytest.mark.asyncio
async def test_a_partition_one_way_loses_requests_or_replies(tmp_path: Path) -> None:
    """Stalled there, the server sees nothing; stalled back, it carries out what nobody hears of; then all arrives."""
    async with world(tmp_path) as w:
        assert await w.call(b"1") == b"1"
        w.proxy.there.set(Trouble(stalled=True))
        there = asyncio.create_task(w.call(b"2"))
        assert await w.call(b"3", 0.2) == "DEADLINE_EXCEEDED"
        assert w.echo.seen == [b"1"]
        w.proxy.heal()
        assert await there == b"2"
        w.proxy.back.set(Trouble(stalled=True))
        back = asyncio.create_task(w.call(b"4"))
        await until(lambda: b"4" in w.echo.seen)
        assert not back.done()
        w.proxy.heal()
        assert await back == b"4"
        assert w.proxy.stats().accepted == 1


@pytest.mark.asyncio
async def test_swallowed_bytes_are_gone_and_so_is_their_connection(tmp_path: Path) -> None:
    """A black hole: bytes are read and thrown away. When it ends the connection is reset, and a new one carries."""
    async with world(tmp_path) as w:
        assert await w.call(b"1") == b"1"
        w.proxy.there.set(Trouble(swallowing=True))
        assert await w.call(b"2", 0.2) == "DEADLINE_EXCEEDED"
        assert w.proxy.stats().there.swallowed_bytes > 0
        w.proxy.heal()
        assert await w.call_again(b"3") == b"3"
        assert w.echo.seen == [b"1", b"3"]
        assert w.proxy.stats().accepted == 2


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(Trouble(delay_ns=2_000_000, jitter_ns=5_000_000), id="late, by how much is drawn"),
        pytest.param(Trouble(slice_bytes=7), id="in pieces of seven octets"),
        pytest.param(Trouble(slice_bytes=1000, slice_gap_ns=100_000), id="in pieces with gaps"),
        pytest.param(Trouble(bytes_per_s=500_000), id="no more than so much a second"),
    ],
)
async def test_slow_ways_carry_the_same_octets(tmp_path: Path, trouble: Trouble) -> None:
    """Late, sliced or limited, what arrives is what was sent."""
    async with world(tmp_path) as w:
        for way in (w.proxy.there, w.proxy.back):
            way.set(trouble)
        sent = [os.urandom(20_000) for _ in range(3)]
        assert await asyncio.gather(*map(w.call, sent)) == sent


@pytest.mark.asyncio
async def test_a_flipped_bit_outside_of_a_payload_ends_the_connection(tmp_path: Path) -> None:
    """The first octets of a connection are HTTP/2's preface: the server notices, and nothing is carried out."""
    async with world(tmp_path) as w:
        w.proxy.there.corrupt(bits=3)
        assert await w.call_again(b"1") == b"1"
        stats = w.proxy.stats()
    assert stats.there.fired == 1
    assert stats.accepted >= 2


@pytest.mark.asyncio
async def test_a_slow_close_is_told_late(tmp_path: Path) -> None:
    """The server's end reaches the client only behind the delay; until then the connection looks alive."""
    async with (
        _server(tmp_path, b"bye") as address,
        Proxy(f"unix:{tmp_path}/proxy", address) as proxy,
    ):
        proxy.back.set(Trouble(close_delay_ns=10**12))
        reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/proxy")
        assert await reader.readexactly(3) == b"bye"
        rest = asyncio.create_task(reader.read())
        other, other_writer = await asyncio.open_unix_connection(f"{tmp_path}/proxy")
        assert await other.readexactly(3) == b"bye"
        assert not rest.done()
        proxy.heal()
        assert [await rest, await other.read()] == [b"", b""]
        writer.close()
        other_writer.close()


@pytest.mark.asyncio
async def test_a_reset_is_an_rst_on_tcp() -> None:
    """The client's read fails with ECONNRESET, which an orderly end would not do."""
    async with aio_serving("127.0.0.1:0") as (_echo, address), Proxy("127.0.0.1:0", address) as proxy:
        host, _, port = proxy.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await until(lambda: proxy.stats().open == 1)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


@pytest.mark.asyncio
async def test_a_target_that_is_not_there_refuses(tmp_path: Path) -> None:
    """And when it is there, the same proxy carries."""
    async with (
        Proxy(f"unix:{tmp_path}/proxy", f"unix:{tmp_path}/echo") as proxy,
        grpc.aio.insecure_channel(proxy.address, options=OPTIONS) as channel,
    ):
        w = World(Echo(), proxy, channel)
        assert await w.call(b"1") == "UNAVAILABLE"
        assert proxy.stats().refused >= 1
        async with aio_serving(f"unix:{tmp_path}/echo"):
            assert await w.call_again(b"2") == b"2"


@pytest.mark.asyncio
async def test_off_means_off(tmp_path: Path) -> None:
    """Without faults and trouble every octet goes through unchanged, and a half that has ended stays half open."""
    sent = os.urandom(3 << 20)
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            received.extend(data)
        writer.write(bytes(received[::-1]))
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, f"{tmp_path}/mirror")
    async with server, Proxy("127.0.0.1:0", f"unix:{tmp_path}/mirror") as proxy:
        host, _, port = proxy.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == sent[::-1]
        writer.close()
        stats = proxy.stats()
    assert received == sent
    assert (stats.there.bytes, stats.back.bytes, stats.there.swallowed_bytes) == (len(sent), len(sent), 0)


@pytest.mark.asyncio
async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """No file descriptor, no task, no socket file, though it is closed in the middle of everything."""
    async with _server(tmp_path, b"") as address:
        descriptors, tasks = _descriptors(), asyncio.all_tasks()
        await _proxied_and_closed(tmp_path, address)
        await until(lambda: asyncio.all_tasks() <= tasks)
        await until(lambda: _descriptors() <= descriptors)
    assert not (tmp_path / "proxy").exists()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


async def _proxied_and_closed(folder: Path, address: str) -> None:
    async with Proxy(f"unix:{folder}/proxy", address) as proxy:
        proxy.there.set(Trouble(delay_ns=10**12))
        proxy.back.set(Trouble(stalled=True))
        clients = [socket.socket(socket.AF_UNIX) for _ in range(8)]
        for client in clients:
            client.connect(f"{folder}/proxy")
            client.sendall(b"PRI")
        await until(lambda: proxy.stats().open == 8 and proxy.stats().there.bytes == 24)
    for client in clients:
        client.close()


@asynccontextmanager
async def _server(folder: Path, says: bytes) -> AsyncIterator[str]:
    """Somebody who says something and closes; who says nothing waits for the other's end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        if not says:
            await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(serve, f"{folder}/server"):
        yield f"unix:{folder}/server"


@pytest.mark.parametrize(
    ("listen", "target", "complaint"),
    [
        ("unix:", "unix:/x", "listen: expected unix:PATH or HOST:PORT, got 'unix:'"),
        ("unix:/x", "localhost", "target: expected unix:PATH or HOST:PORT, got 'localhost'"),
        ("unix:/x", "localhost:0", "target: expected unix:PATH or HOST:PORT, got 'localhost:0'"),
        ("localhost:70000", "unix:/x", "listen: expected unix:PATH or HOST:PORT, got 'localhost:70000'"),
    ],
)
def test_an_address_that_is_none_is_named(listen: str, target: str, complaint: str) -> None:
    """With what was expected."""
    with pytest.raises(ValueError, match="expected") as caught:
        Proxy(listen, target)
    assert str(caught.value) == complaint


def test_a_trouble_that_cannot_be_is_refused() -> None:
    """Negative numbers, and a way that reads nothing and throws away what it reads."""
    with pytest.raises(ValueError, match=r"^delay_ns: expected 0 or more, got -1$"):
        Trouble(delay_ns=-1)
    with pytest.raises(ValueError, match=r"^swallowing: expected false where stalled is set"):
        replace(Trouble(stalled=True), swallowing=True)
