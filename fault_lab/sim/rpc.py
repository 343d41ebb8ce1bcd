"""Calls and streams as gRPC has them: deadlines, statuses, replies that get lost after the call was carried out.

client          network           host
invoke  ----- request ----->  serve: carried out, waits for its commit
ok/fail <------ reply ------  answer
info    (the deadline, or a reset: it may have happened, it may happen still)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from fault_lab.sim.client_points import RECEIVE, SEND, reached
from fault_lab.sim.network import Message
from fault_lab.sim.task import Call, Stream
from guest_agent.outcome import Refusal

if TYPE_CHECKING:
    from fault_lab.sim.host import HostNode
    from fault_lab.sim.node import Node

#: Statuses after which a caller does not know whether the call was carried out.
UNKNOWN: Final = frozenset({"DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED", "UNKNOWN"})
#: Those of them that a client's own gRPC makes when no answer came.
_NO_ANSWER: Final = UNKNOWN - {"UNKNOWN"}
#: gRPC's own words: a connection that was reset or refused, a deadline.
RESET: Final = Refusal("UNAVAILABLE", "the connection was reset")
REFUSED: Final = Refusal("UNAVAILABLE", "the connection was refused")
LATE: Final = Refusal("DEADLINE_EXCEEDED", "the deadline has passed")


class Exchange:
    """One call on its way there and back."""

    __slots__ = ("_timer", "client", "done", "host", "id", "life", "method", "process", "request", "stream", "then")

    def __init__(self, client: Node, host: HostNode, step: Call, then: Callable[[Any], None]) -> None:
        self.client = client
        self.host = host
        self.method = step.method
        self.request = step.request
        self.process = step.process or client.name
        self.then = then
        self.life = client.life
        self.done = False
        self.stream: Stream | None = None
        self.id = client.world.next_call()
        self._timer = client.after(step.timeout_ns, f"deadline {self.method}", lambda: self.finish(LATE))

    # -- there ---------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Send the request."""
        world = self.client.world
        said, op = world.brief(self.request), world.operation(self.request)
        world.record("invoke", process=self.process, f=self.method, call=self.id, value=said, **op)
        world.open_calls[self.id] = self
        reached(SEND, self, self._send, instead=self.finish, again=self._send)

    def _send(self) -> None:
        message = Message(
            f"{self.method} request", self._arrives, lambda: self._broken(RESET), doubles=True, call=self.id
        )
        self.client.world.network.send(self.client.name, self.host.name, message)

    def _arrives(self) -> None:
        if self.host.up:
            self.host.serve(self)
        else:
            self._broken(REFUSED)

    def _broken(self, status: Refusal) -> None:
        """The connection says so, not the host: no message of ours that a fault could be about."""
        world = self.client.world
        back_ns = world.network.least_ns(self.host.name, self.client.name)
        world.after(back_ns, self.client.name, f"{self.method} {status.code}", lambda: self.finish(status))

    # -- back ----------------------------------------------------------------------------------------------------------

    def answer(self, reply: object) -> None:
        """The host's answer, which may leave."""
        message = Message(f"{self.method} reply", lambda: self._hear(reply), lambda: self.finish(RESET), call=self.id)
        self.client.world.network.send(self.host.name, self.client.name, message)

    def _hear(self, reply: object) -> None:
        """It has arrived; what gRPC would say of itself is no answer."""
        if self.done or _code(reply) in _NO_ANSWER:
            self.finish(reply)
        else:
            reached(RECEIVE, self, lambda: self.finish(reply), instead=self.finish)

    def finish(self, reply: object) -> None:
        """The caller hears; what comes later is of no more use."""
        if self.done or self.client.life != self.life or not self.client.up:
            return
        self.done = True
        self._timer.cancel()
        world = self.client.world
        world.open_calls.pop(self.id, None)
        refused = isinstance(reply, Refusal)
        kind = "ok" if not refused else "info" if _code(reply) in UNKNOWN else "fail"
        said = f"{_code(reply)} {reply.reason}".strip() if isinstance(reply, Refusal) else world.brief(reply)
        heard = {} if refused else world.result(self.request, reply)
        world.record(kind, process=self.process, f=self.method, call=self.id, value=said, **heard)
        self.then(reply)

    def reset(self, node: str) -> None:
        """One end's process has ended."""
        if node == self.client.name:
            self.done = True
            self.client.world.open_calls.pop(self.id, None)
        elif node == self.host.name:
            self._broken(RESET)


class StreamExchange(Exchange):
    """A call whose answers are a stream: it has no deadline, and its messages keep their order."""

    __slots__ = ("_busy", "_inbox")

    def __init__(self, client: Node, host: HostNode, step: Call) -> None:
        super().__init__(client, host, step, lambda _reply: None)
        self.stream = Stream()
        self._timer.cancel()
        #: What has arrived and waits behind a message that its reader has not heard yet.
        self._inbox: deque[Callable[[], None]] = deque()
        self._busy = False

    def push(self, message: object) -> None:
        """One more answer, which may leave."""
        on_way = Message(
            f"{self.method} message", lambda: self._arrived(message), lambda: self.finish(RESET), self.id, call=self.id
        )
        self.client.world.network.send(self.host.name, self.client.name, on_way)

    def _arrived(self, message: object) -> None:
        if not self.done and self.client.life == self.life:
            self._inbox.append(lambda: reached(RECEIVE, self, lambda: self._heard(message), instead=self.finish))
            self._next()

    def _heard(self, message: object) -> None:
        if self.stream is not None and not self.done and self.client.life == self.life:
            self.stream.put(message)
            self._busy = False
            self._next()

    def _next(self) -> None:
        if self._inbox and not self._busy:
            self._busy = True
            self._inbox.popleft()()

    def answer(self, reply: object) -> None:
        """A stream is answered once, with the status that it ends with, behind all that was said before."""

        def arrived() -> None:
            self._inbox.append(lambda: self.finish(reply))
            self._next()

        last = Message(f"{self.method} status", arrived, lambda: self.finish(RESET), self.id, call=self.id)
        self.client.world.network.send(self.host.name, self.client.name, last)

    def finish(self, reply: object) -> None:
        """The stream is over for its reader."""
        was = self.done
        super().finish(reply)
        if not was and self.done and self.stream is not None:
            self.stream.end(reply if isinstance(reply, Refusal) else Refusal("OK", ""))


def call(client: Node, step: Call, then: Callable[[Any], None]) -> None:
    """Ask the client's host."""
    world = client.world
    Exchange(client, world.hosts[step.host] if step.host else world.host_of(client.name), step, then).begin()


def open_stream(client: Node, method: str, request: object) -> Stream:
    """Open a stream of answers."""
    exchange = StreamExchange(client, client.world.host_of(client.name), Call(method, request, 0))
    exchange.begin()
    assert exchange.stream is not None
    return exchange.stream


def _code(reply: object) -> str:
    return reply.code if isinstance(reply, Refusal) else ""
