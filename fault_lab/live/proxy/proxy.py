"""A proxy between two nodes: what a plan says of their link happens to real connections.

    async with Proxy("unix:/tmp/a.sock", host_address, link=("vms/a", "host"), faults=faults) as proxy:
        guest_connects_to(proxy.address)
        proxy.there.set(Trouble(stalled=True))     # vms/a->host carries nothing; host->vms/a still does
        proxy.heal()

Both addresses are ``unix:PATH`` or ``HOST:PORT``, in any mixture; port 0 listens at a free one, which ``address``
names. Without ``faults`` bytes go through unchanged but for the ways' trouble. With them it reads HTTP/2, and each
message is a hit of ``link.message``: ``traffic`` says which bytes that is. One proxy is one link; everything is to be
called in the event loop that it was started in.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from fault_lab.live.points import Firing, LiveFaults
from fault_lab.live.proxy.connection import Connection, Feed, Half
from fault_lab.live.proxy.copies import send_copy
from fault_lab.live.proxy.http2 import Headers, NotHttp2Error
from fault_lab.live.proxy.link import Link, copy_delays_ns
from fault_lab.live.proxy.traffic import Traffic
from fault_lab.live.proxy.way import Way

_NS: Final = 1_000_000_000
#: When HTTP/2's keep-alives find that nothing comes any more. Source: guest_agent/channel.py.
KEEPALIVE_NS: Final = 35 * _NS
_HOST_PORT = re.compile(r"\[?([0-9A-Za-z:._-]+?)\]?:(\d{1,5})")


@dataclass(frozen=True, slots=True)
class WayStats:
    """What has gone one way. ``messages`` is 0 where nobody asks for them."""

    link: str
    bytes: int
    swallowed_bytes: int
    messages: int
    fired: int


@dataclass(frozen=True, slots=True)
class Stats:
    """What has gone through a proxy. ``opaque`` of its connections spoke no HTTP/2 that can be read, as TLS is."""

    there: WayStats
    back: WayStats
    open: int
    accepted: int
    refused: int
    opaque: int


class Proxy:
    """Listens at ``listen`` and forwards to ``target``; ``link`` names the nodes on both sides as a plan does.

    ``latency``: how long each message takes on top, in nanoseconds, from..to, drawn as in the simulator.
    ``noticed_ns``: when a stream that has lost a message breaks. ``seed``: of the draws where there are no ``faults``.
    """

    def __init__(
        self,
        listen: str,
        target: str,
        *,
        link: tuple[str, str] = ("client", "server"),
        faults: LiveFaults | None = None,
        latency: tuple[int, int] = (0, 0),
        noticed_ns: int = KEEPALIVE_NS,
        seed: int = 0,
    ) -> None:
        self._listen, self._target = _parse("listen", listen, least_port=0), _parse("target", target, least_port=1)
        self._target_address = target
        self._faults = faults
        source, to = link
        seed = faults.seed if faults is not None else seed
        self.there, self.back = Way(f"{source}->{to}", seed), Way(f"{to}->{source}", seed)
        self._noticed_ns = noticed_ns
        self._links: tuple[Link, Link] | None = None
        if faults is not None:
            self._links = Link(self.there, faults, latency), Link(self.back, faults, latency)
        self._unlisten: Callable[[], None] = lambda: None
        self._timers: set[asyncio.TimerHandle] = set()
        self.address = listen
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[Connection] = set()
        self._accepted = self._refused = self._opaque = 0

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen. Raises OSError where that cannot be."""
        loop = asyncio.get_running_loop()
        if self._faults is not None:
            self._unlisten = self._faults.when_changed(lambda: loop.call_soon_threadsafe(self._changed))
        if isinstance(self._listen, str):
            self._server = await loop.create_unix_server(self._accept, self._listen)
            return
        self._server = await loop.create_server(self._accept, *self._listen)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def close(self) -> None:
        """Listen no more, end every connection, and wait until nothing of it is left."""
        assert self._server is not None
        self._server.close()
        self._unlisten()
        for link in self._links or ():
            link.close()
        for timer in self._timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        connections = list(self._connections)
        self.cut()
        await asyncio.gather(*(each.wait_gone() for each in connections))
        await self._server.wait_closed()
        if isinstance(self._listen, str):
            Path(self._listen).unlink(missing_ok=True)  # noqa: ASYNC240 -- one system call

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    # -- all at once ---------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """End every connection, as a process that ends does."""
        for connection in list(self._connections):
            connection.abort()

    def reset(self) -> None:
        """End every connection with RST; over unix sockets, which have none, as ``cut``."""
        for connection in list(self._connections):
            connection.abort(reset=True)

    def heal(self) -> None:
        """Both ways carry again. What a plan's fault holds is let go by its phase."""
        self.there.heal()
        self.back.heal()

    def stats(self) -> Stats:
        """What has gone through so far."""
        return Stats(
            there=_stats(self.there),
            back=_stats(self.back),
            open=len(self._connections),
            accepted=self._accepted,
            refused=self._refused,
            opaque=self._opaque,
        )

    # -- connections ---------------------------------------------------------------------------------------------------

    def _accept(self) -> Half:
        self._accepted += 1
        client = Half(self.there)
        self._spawn(self._connect(client))
        return client

    async def _connect(self, client: Half) -> None:
        """Reach the target; a target that is not there is a connection that ends at once."""
        loop, target = asyncio.get_running_loop(), Half(self.back)
        try:
            if isinstance(self._target, str):
                await loop.create_unix_connection(lambda: target, self._target)
            else:
                await loop.create_connection(lambda: target, *self._target)
        except OSError:
            self._refused += 1
            client.abort(reset=True)
            return
        except asyncio.CancelledError:
            client.abort()
            raise
        if client.gone.done():
            target.abort()
            return
        connection = Connection(client, target, self._connections.discard)
        self._connections.add(connection)
        if self._links is not None:
            self._read(connection, self._links)
        connection.start()

    def _read(self, connection: Connection, links: tuple[Link, Link]) -> None:
        """Have the messages of a connection read; what stops making sense ends it."""
        client, target = connection.client, connection.target
        assert client.pipe is not None
        assert target.pipe is not None
        traffic = Traffic(
            *links,
            to_target=client.pipe.push,
            to_client=target.pipe.push,
            copy=self._copy,
            later=self._later,
            on_opaque=self._count_opaque,
        )

        def checked(feed: Feed) -> Feed:
            def read(data: bytes) -> None:
                try:
                    feed(data)
                except NotHttp2Error:
                    connection.abort()

            return read

        client.feed, target.feed = checked(traffic.from_client), checked(traffic.from_target)

    def _changed(self) -> None:
        for link in self._links or ():
            link.changed()

    def _copy(self, headers: Headers, octets: bytes, firing: Firing) -> None:
        for delay_ns in copy_delays_ns(firing):
            self._spawn(send_copy(self._target_address, headers, octets, delay_ns))

    def _later(self, then: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            then()

        timer = asyncio.get_running_loop().call_later(self._noticed_ns / _NS, run)
        self._timers.add(timer)

    def _count_opaque(self) -> None:
        self._opaque += 1

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _stats(way: Way) -> WayStats:
    return WayStats(way.name, way.bytes, way.swallowed_bytes, way.messages, way.fired)


def _parse(field: str, address: str, *, least_port: int) -> str | tuple[str, int]:
    """A path, or a host and a port. Raises ValueError, naming the field."""
    scheme, _, path = address.partition(":")
    if scheme == "unix" and path:
        return path.removeprefix("//")
    match = _HOST_PORT.fullmatch(address)
    if match is None or scheme == "unix" or not least_port <= int(match[2]) <= 65535:
        raise ValueError(f"{field}: expected unix:PATH or HOST:PORT, got {address!r}")
    return match[1], int(match[2])
