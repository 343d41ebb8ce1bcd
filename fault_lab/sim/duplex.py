"""A call with a stream both ways. Its requests keep their order as its answers do, and all that is lost ends it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fault_lab.sim.client_points import SEND, reached
from fault_lab.sim.network import Message
from fault_lab.sim.rpc import RESET, StreamExchange
from fault_lab.sim.task import Call

if TYPE_CHECKING:
    from fault_lab.sim.node import Node


class DuplexExchange(StreamExchange):
    """One such call. Its first request opens it; ``say`` sends the others."""

    __slots__ = ("_host_life", "_outbox", "_saying", "_taker")

    def __init__(self, client: Node, method: str, request: object) -> None:
        super().__init__(client, client.world.host_of(client.name), Call(method, request, 0))
        self._outbox: deque[object] = deque()
        self._saying = False
        #: Who takes what is said, in the process of the host that the stream is of.
        self._taker: Callable[[object], None] | None = None
        self._host_life = 0

    # -- the client's side ---------------------------------------------------------------------------------------------

    def say(self, message: object) -> None:
        """Send one more request, behind those before it."""
        self._outbox.append(message)
        self._say_next()

    def _send(self) -> None:
        opening = Message(f"{self.method} request", self._arrives, lambda: self._broken(RESET), self.id, call=self.id)
        self.client.world.network.send(self.client.name, self.host.name, opening)

    def _say_next(self) -> None:
        if self._outbox and not self._saying and not self.done:
            self._saying = True
            leave = partial(self._leaves, self._outbox.popleft())
            reached(SEND, self, leave, instead=lambda _status: leave())  # the call has begun: no status ends it here

    def _leaves(self, message: object) -> None:
        if not self.done:
            on_way = Message(
                f"{self.method} message",
                partial(self._said, message),
                lambda: self.finish(RESET),
                self.id,
                call=self.id,
            )
            self.client.world.network.send(self.client.name, self.host.name, on_way)
        self._saying = False
        self._say_next()

    # -- the host's side -----------------------------------------------------------------------------------------------

    def listen(self, taker: Callable[[object], None]) -> None:
        """Hand over what the client says from now on; not to a later process of the host."""
        self._taker, self._host_life = taker, self.host.life

    def _said(self, message: object) -> None:
        if self._taker is not None and self.host.up and self.host.life == self._host_life:
            self._taker(message)


def open_duplex(client: Node, method: str, request: object) -> DuplexExchange:
    """Open a stream both ways."""
    exchange = DuplexExchange(client, method, request)
    exchange.begin()
    return exchange
