"""One connection through the proxy: a socket to the client, one to the target, and a pipe each way.

client  -- Half.data_received -> [Traffic: messages] -> Pipe `there` -> Half.write --  target
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

from fault_lab.live.proxy.pipe import Pipe
from fault_lab.live.proxy.way import Way

#: What reads the messages out of one way's bytes, where there is somebody who asks for them.
Feed = Callable[[bytes], None]


class Half(asyncio.Protocol):
    """The socket of one side. What it reads goes into ``pipe``, and comes out of the other half."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.other: Half | None = None
        self.pipe: Pipe | None = None
        self.feed: Feed | None = None
        self.transport: asyncio.Transport | None = None
        self.gone = asyncio.get_running_loop().create_future()
        self.eof = False
        self._pauses: set[str] = {"start"}
        self._unwanted = False
        self._on_gone: Callable[[], None] = lambda: None

    def join(self, other: Half, on_gone: Callable[[], None]) -> None:
        """Carry to ``other``; ``on_gone`` is called when this socket has closed."""
        self.other, self._on_gone = other, on_gone
        self.pipe = Pipe(self.way, self)

    # -- asyncio's -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing is read before the other side is there."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()
        if self._unwanted:
            self.abort(reset=True)

    def data_received(self, data: bytes) -> None:
        """Hand on what was read."""
        assert self.pipe is not None
        data = self.way.passing(data)
        (self.feed or self.pipe.push)(data)

    def eof_received(self) -> bool:
        """One side says no more; the other may go on."""
        self.eof = True
        if self.pipe is not None:
            self.pipe.end()
        return True

    def connection_lost(self, _error: Exception | None) -> None:
        """The socket has closed."""
        if not self.gone.done():
            self.gone.set_result(None)
        self._on_gone()

    def pause_writing(self) -> None:
        """Its buffer is full: the other side reads no more."""
        if self.other is not None and self.other.pipe is not None:
            self.other.pipe.writable(yes=False)

    def resume_writing(self) -> None:
        """Its buffer has room."""
        if self.other is not None and self.other.pipe is not None:
            self.other.pipe.writable(yes=True)

    # -- Ends of its pipe ----------------------------------------------------------------------------------------------

    def pause(self, reason: str, *, paused: bool) -> None:
        """Read no more, or read again, for this reason."""
        was = bool(self._pauses)
        (self._pauses.add if paused else self._pauses.discard)(reason)
        if self.transport is None or self.transport.is_closing() or was == bool(self._pauses):
            return
        (self.transport.pause_reading if self._pauses else self.transport.resume_reading)()

    def write(self, data: bytes) -> None:
        """Write to the other side."""
        assert self.other is not None
        assert self.other.transport is not None
        if not self.other.transport.is_closing():
            self.other.transport.write(data)

    def finish(self) -> None:
        """Tell the other side that no more comes; close where that holds both ways."""
        assert self.other is not None
        assert self.other.transport is not None
        if self.other.eof:
            self.close()
            self.other.close()
        elif not self.other.transport.is_closing():
            self.other.transport.write_eof()

    def lose(self) -> None:
        """End the connection at once."""
        self.abort(reset=True)
        if self.other is not None:
            self.other.abort(reset=True)

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close when everything is written."""
        if self.transport is not None:
            self.transport.close()

    def abort(self, *, reset: bool = False) -> None:
        """Close now, or as soon as there is something to close. ``reset``: with RST, where the socket is TCP's."""
        self._unwanted = True
        if self.transport is None or self.transport.is_closing():
            return
        sock = self.transport.get_extra_info("socket")
        if reset and sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # SO_LINGER with no time: close() sends RST and forgets what is unsent. Source: socket(7), tcp(7).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class Connection:
    """Both halves."""

    def __init__(self, client: Half, target: Half, on_gone: Callable[[Connection], None]) -> None:
        self.client, self.target = client, target
        self._on_gone = on_gone
        self._open = 2
        client.join(target, self._half_gone)
        target.join(client, self._half_gone)

    def start(self) -> None:
        """Begin to read."""
        for half in (self.client, self.target):
            half.pause("start", paused=False)

    def abort(self, *, reset: bool = False) -> None:
        """End it at once."""
        for half in (self.client, self.target):
            half.abort(reset=reset)

    async def wait_gone(self) -> None:
        """Wait until both sockets have closed and nothing of it runs."""
        halves = (self.client, self.target)
        await asyncio.gather(*(half.gone for half in halves))
        tasks = [half.pipe.close() for half in halves if half.pipe is not None]
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)

    def _half_gone(self) -> None:
        """A socket that closed by itself takes the other one with it."""
        self._open -= 1
        for half in (self.client, self.target):
            if half.pipe is not None and half.gone.done():
                half.pipe.close()
        if self._open:
            self.abort()
        else:
            self._on_gone(self)
