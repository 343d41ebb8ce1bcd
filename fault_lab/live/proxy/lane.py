"""One way of one call: its messages leave in the order in which they came, each when it is let go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fault_lab.live.proxy.http2 import Headers


@dataclass(frozen=True, slots=True)
class HeadersPart:
    """A header block: of the call, of the reply, or its trailers."""

    headers: Headers
    ends: bool


@dataclass(frozen=True, slots=True)
class DataPart:
    """Some octets of a message."""

    octets: bytes
    ends: bool


@dataclass(frozen=True, slots=True)
class ResetPart:
    """RST_STREAM."""

    code: int


@dataclass(frozen=True, slots=True)
class BrokenPart:
    """What was here does not make sense to its receiver: the call is over for both ends."""


Part = HeadersPart | DataPart | ResetPart | BrokenPart


@dataclass(slots=True, eq=False)
class Passage:
    """A message on its lane, or what goes along with the messages: parts arrive while it waits, or after it has left.

    ``lost``: what more of it arrives is thrown away.
    """

    lane: Lane
    ready: bool = False
    lost: bool = False
    parts: list[Part] = field(default_factory=list)

    def let_go(self) -> None:
        """It may leave, behind those in front of it."""
        self.ready = True
        self.lane.flush()


class Lane:
    """The messages of one way of one call. ``emit`` writes a part. ``whole``: all there is, is one message."""

    def __init__(self, emit: Callable[[Part], None], *, whole: bool) -> None:
        self._emit = emit
        self._queue: deque[Passage] = deque()
        self.whole = whole
        self.current: Passage | None = None
        #: Nothing goes this way any more.
        self.dead = False
        #: Octets that are missing of the prefix, and then of the message, that is arriving.
        self._prefix = bytearray()
        self._missing = 0

    @property
    def takes(self) -> bool:
        """Whether more of the message that is arriving goes on."""
        return not self.dead and not (self.current is not None and self.current.lost)

    def begin(self) -> Passage:
        """A message begins; it leaves when it is let go."""
        self.current = Passage(self)
        self._queue.append(self.current)
        return self.current

    def beside(self, part: Part) -> None:
        """Something that is no message goes along, behind what waits."""
        self._queue.append(Passage(self, ready=True, parts=[part]))
        self.flush()

    def add(self, part: Part) -> None:
        """More of the message that is arriving."""
        assert self.current is not None
        if self.current in self._queue:
            self.current.parts.append(part)
            self.flush()
        else:
            self._emit(part)

    def kill(self) -> None:
        """Throw away what waits, and what will come."""
        self.dead = True
        self._queue.clear()

    def flush(self) -> None:
        """Write what may leave."""
        while self._queue and self._queue[0].ready:
            passage = self._queue.popleft()
            for part in passage.parts:
                if not self.dead:
                    self._emit(part)

    def messages(self, octets: bytes) -> Iterator[tuple[bytes, bool]]:
        """Cut octets at the borders of gRPC's messages; with each piece, whether a message begins with it.

        Source: gRPC over HTTP2, Length-Prefixed-Message: a flag, four octets of length, the message.
        """
        at = 0
        while at < len(octets):
            begins, start = not self._prefix and not self._missing, at
            while at < len(octets) and (begins or self._prefix) and len(self._prefix) < 5:
                self._prefix.append(octets[at])
                at += 1
            if len(self._prefix) == 5:
                self._missing = int.from_bytes(self._prefix[1:])
                self._prefix.clear()
            if not self._prefix:
                size = min(self._missing, len(octets) - at)
                self._missing -= size
                at += size
            yield octets[start:at], begins
