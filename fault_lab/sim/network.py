"""The modelled network: how long a message takes, and what becomes of it at the point ``link.message``.

Messages of different calls overtake each other as their latencies are drawn; those of one stream never do. What a
fault does is what a program on a connection sees of it:

    drop        a call's message never arrives: its deadline tells. Of a stream: the stream breaks, as keep-alives find
    corrupt     a broken frame: the call, or the stream, ends UNAVAILABLE
    duplicate   the request arrives again (a proxy that hedges); an answer, or a stream's message, counts once
    reorder     overtaken by up to so many that are sent after it on the same link; of a stream: it is in order
    hold        it and all behind it wait
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.action import Corrupt, Delay, Drop, Duplicate, Hold, Reorder
from fault_lab.injection.draw import draw_between, subseed
from fault_lab.injection.hit import matches
from fault_lab.wire.duration import duration_ns

if TYPE_CHECKING:
    from fault_lab.sim.world import World

_US: Final = 1_000
#: How long a message takes where the plan does not say.
_DEFAULT: Final = (50 * _US, 200 * _US)
#: A message that nobody overtakes goes on all the same.
_OVERTAKEN_NS: Final = 100_000 * _US
#: A stream whose message was lost is found to be dead by HTTP/2's keep-alives. Source: guest_agent/channel.py.
_KEEPALIVE_NS: Final = 35_000_000 * _US


@dataclass(slots=True)
class Message:
    """One message on its way. ``deliver`` is called at ``to`` when it arrives, ``broken`` where its frame is."""

    what: str
    deliver: Callable[[], None]
    broken: Callable[[], None]
    #: The stream it is part of; None for a message of a call, which no other waits for.
    stream: int | None = None
    #: Whether a second copy means anything to its receiver.
    doubles: bool = False
    #: The call that it belongs to, as the history numbers it, and when it was sent.
    call: int = 0
    sent_ns: int = 0


@dataclass(slots=True)
class _Link:
    """One way between two nodes."""

    name: str
    to: str
    latency: tuple[int, int]
    sent: int = 0
    #: Why it holds, and what waits: None where it carries.
    held_by: str | None = None
    held: list[Message] = field(default_factory=list)
    overtaken: list[tuple[int, Message]] = field(default_factory=list)
    #: Streams that have lost a message: what is sent behind it arrives no more than it did.
    torn: set[int] = field(default_factory=set)
    #: When the last message of each stream arrives.
    last_ns: dict[int, int] = field(default_factory=dict)


class Network:
    """Every link of a world."""

    def __init__(self, world: World, topology: plan_pb2.Topology, seed: int) -> None:
        self._world = world
        self._topology = topology
        self.reseed(seed)
        self._links: dict[tuple[str, str], _Link] = {}
        #: What a node's end means for the calls and streams that it has a part in.
        self.on_reset: list[Callable[[str], None]] = []

    def reseed(self, seed: int) -> None:
        """Draw from another seed from now on."""
        self._seed = subseed(seed, "network")

    def send(self, source: str, to: str, message: Message) -> None:
        """Put a message on its way."""
        link = self._link(source, to)
        link.sent += 1
        nr = link.sent
        message.sent_ns = self._world.now_ns
        extra_ns = 0
        if message.stream in link.torn:
            self._record(link, message, lost="torn")
            return
        found = self._world.hit("link.message", link.name, message.what)
        if found is not None:
            fired, fault, hit = found
            match fired.action:
                case Drop():
                    self._lose(link, message)
                    return
                case Corrupt():
                    message.what, message.deliver = f"{message.what}, broken", message.broken
                case Delay(min_ns=ns):
                    extra_ns = ns
                case Duplicate(copies=copies) if message.doubles:
                    for copy in range(copies):
                        late = fault.draw(hit, f"copy-{copy}", low=0, high=link.latency[1] + 1)
                        self._carry(link, message, nr, late)
                case Reorder(depth=depth) if message.stream is None:
                    link.overtaken.append((depth, message))
                    self._world.after(_OVERTAKEN_NS, "", f"{link.name} goes on", lambda: self._overtaken(link, message))
                    return
                case Hold(for_ns=ns):
                    self._hold(link, fired.fault, ns)
                case _:
                    pass
        self._carry(link, message, nr, extra_ns)
        self._let_by(link)

    def _carry(self, link: _Link, message: Message, nr: int, extra_ns: int = 0) -> None:
        if link.held_by is not None:
            link.held.append(message)
            return
        low, high = link.latency
        at_ns = self._world.now_ns + extra_ns + draw_between(self._seed, "latency", link.name, nr, low=low, high=high)
        kind = message.what
        if message.stream is not None:
            at_ns = link.last_ns[message.stream] = max(at_ns, link.last_ns.get(message.stream, 0))
            kind = f"stream {message.stream}"
        self._world.at(at_ns, link.to, message.what, partial(self._arrives, link, message), f"{link.name} {kind}")

    def _arrives(self, link: _Link, message: Message) -> None:
        up = link.to not in self._world.nodes or self._world.nodes[link.to].up
        self._record(link, message, lost="" if up else "down")
        message.deliver()

    def _record(self, link: _Link, message: Message, *, lost: str) -> None:
        """Write down that a message has arrived, or why it never will."""
        fields = {"link": link.name, "what": message.what, "call": message.call, "sent": message.sent_ns}
        self._world.record("message", **fields, **({"lost": lost} if lost else {}))

    def _lose(self, link: _Link, message: Message) -> None:
        self._record(link, message, lost="dropped")
        if message.stream is not None:
            link.torn.add(message.stream)
            self._world.after(_KEEPALIVE_NS, link.to, f"{message.what} is missed", message.broken)

    def _let_by(self, link: _Link) -> None:
        """One more message has overtaken those that were to be overtaken."""
        waiting, link.overtaken = link.overtaken, []
        for depth, message in waiting:
            if depth > 1:
                link.overtaken.append((depth - 1, message))
            else:
                self._carry(link, message, link.sent)

    def _overtaken(self, link: _Link, message: Message) -> None:
        if any(each is message for _, each in link.overtaken):
            link.overtaken = [pair for pair in link.overtaken if pair[1] is not message]
            self._carry(link, message, link.sent)

    # -- holding and letting go ----------------------------------------------------------------------------------------

    def _hold(self, link: _Link, fault: str, ns: int) -> None:
        link.held_by = fault
        self._world.record("link", link=link.name, state="held", fault=fault)
        if ns:
            self._world.after(ns, "", f"{link.name} carries again", lambda: self._let_go(link))

    def _let_go(self, link: _Link) -> None:
        self._world.record("link", link=link.name, state="carries", fault=link.held_by)
        link.held_by = None
        held, link.held = link.held, []
        for message in held:
            link.sent += 1
            self._carry(link, message, link.sent)

    def let_go(self, stands: Callable[[str], bool]) -> None:
        """Let go what is held by a fault that does not stand any more."""
        for link in self._links.values():
            if link.held_by is not None and not stands(link.held_by):
                self._let_go(link)

    def reset(self, node: str) -> None:
        """A process has ended, and the system has closed its connections."""
        for tell in self.on_reset:
            tell(node)

    def least_ns(self, source: str, to: str) -> int:
        """How long the quickest message takes."""
        return self._link(source, to).latency[0]

    # -- links ---------------------------------------------------------------------------------------------------------

    def _link(self, source: str, to: str) -> _Link:
        link = self._links.get((source, to))
        if link is None:
            link = self._links[source, to] = _Link(f"{source}->{to}", to, self._latency(source, to))
        return link

    def _latency(self, source: str, to: str) -> tuple[int, int]:
        for link in self._topology.links:
            if matches(getattr(link, "from"), source) and matches(link.to, to):
                return latency_ns(link.latency)
        return latency_ns(self._topology.link_default) if self._topology.HasField("link_default") else _DEFAULT


def latency_ns(latency: plan_pb2.Latency) -> tuple[int, int]:
    """The least and the most, in nanoseconds."""
    low = duration_ns("min", latency.min)
    return low, duration_ns("max", latency.max) if latency.HasField("max") else low
