"""The calls on one connection: which bytes are a message, and what becomes of each.

A hit of ``link.message`` is what the simulator sends:

    client -> server    the whole request of a method whose requests are no stream: ``M request``
                        else the opening, ``M request``, and each message behind it, ``M message``
    server -> client    the whole answer of a method whose answers are no stream: ``M reply``
                        else each message, ``M message``, and the status that it ends with, ``M status``

Everything else (settings, pings, windows, initial metadata) goes by. Messages of different calls may overtake one
another here, which HTTP/2 allows once two things are seen to: header blocks depend on no other (``http2``), and a
stream has its number at the target from when it leaves, since numbers must rise. Windows stay the two ends' own
business; for octets that are lost here the sender's window is given back, as the receiver would have done.

What is held or late when its connection ends is lost with it. Bytes that are no HTTP/2 without TLS go through as they
are, and no point is asked for them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from fault_lab.live.points import Firing
from fault_lab.live.proxy import http2
from fault_lab.live.proxy.call import Call, Calls, Write
from fault_lab.live.proxy.http2 import Frame, FrameReader, Headers
from fault_lab.live.proxy.lane import DataPart, HeadersPart, Lane, Part, ResetPart
from fault_lab.live.proxy.link import Fate, Link
from fault_lab.live.proxy.methods import kind_of

_LAST_STREAM: Final = (1 << 31) - 1
#: A request that is to arrive again: its headers, its octets, and what fired.
Copy = Callable[[Headers, bytes, Firing], None]


class Traffic:
    """One connection. ``copy`` sends second arrivals, ``later`` waits until keep-alives would notice a loss."""

    def __init__(
        self,
        there: Link,
        back: Link,
        *,
        to_target: Write,
        to_client: Write,
        copy: Copy,
        later: Callable[[Callable[[], None]], None],
        on_opaque: Callable[[], None],
    ) -> None:
        self._there, self._back = there, back
        self._to_target, self._to_client = to_target, to_client
        self._copy, self._later, self._on_opaque = copy, later, on_opaque
        self._from_client, self._from_target = FrameReader(http2.PREFACE), FrameReader()
        self._calls = Calls(to_target, to_client)
        self._prefaced = False
        self._opaque = False

    # -- from the client -----------------------------------------------------------------------------------------------

    def from_client(self, data: bytes) -> None:
        """Bytes that the client sent. Raises ``NotHttp2Error`` for what stops making sense."""
        if self._opaque:
            self._to_target(data)
            return
        try:
            for frame in self._from_client.feed(data):
                self._client_frame(frame)
        except http2.NotHttp2Error:
            if self._prefaced:
                raise
            self._opaque = True
            self._on_opaque()
            self._to_target(self._from_client.rest())
            self._to_client(self._from_target.rest())

    def _client_frame(self, frame: Frame) -> None:
        if not self._prefaced:
            self._prefaced = True
            self._to_target(http2.PREFACE)
        call = self._calls.of_client(frame.stream)
        match frame.type:
            case http2.HEADERS:
                self._request_headers(call, frame)
            case http2.DATA:
                self._request_data(call, frame)
            case http2.RST_STREAM if call is not None:
                self._given_up(call, int.from_bytes(frame.payload))
            case http2.WINDOW_UPDATE if call is not None:
                if call.target_id:
                    self._to_target(_renumbered(frame, call.target_id))
                else:
                    call.early.append(frame.payload)
            case _ if not frame.stream:
                self._to_target(frame.to_bytes())

    def _request_headers(self, call: Call | None, frame: Frame) -> None:
        headers = self._calls.requests.decode(frame.payload)
        if call is not None and not call.there.dead:
            call.there.beside(HeadersPart(headers, frame.ends))
        elif call is None and frame.stream > self._calls.last_client_id:
            kind = kind_of(dict(headers).get(b":path", b"").decode("ascii", "replace"))
            call = self._calls.open(frame.stream, kind, headers)
            self._message(call, call.there, "request", HeadersPart(headers, frame.ends))

    def _request_data(self, call: Call | None, frame: Frame) -> None:
        self._give_back(self._to_client, call.client_id if call else 0, frame.padding)
        if call is None or call.there.dead:
            self._give_back(self._to_client, call.client_id if call else 0, len(frame.payload))
            return
        if call.doubling is not None:
            call.octets += frame.payload
            if frame.ends:
                self._copy(call.headers, bytes(call.octets), call.doubling)
                call.doubling = None
        self._data(call, call.there, frame)

    def _given_up(self, call: Call, code: int) -> None:
        """The client resets the stream; the target hears of it behind what waits in front of it."""
        call.ended_back = True
        call.back.kill()
        if call.there.dead:
            self._calls.forget(call)
        else:
            call.there.beside(ResetPart(code))

    # -- from the target -----------------------------------------------------------------------------------------------

    def from_target(self, data: bytes) -> None:
        """Bytes that the target sent. Raises ``NotHttp2Error``."""
        if self._opaque:
            self._to_client(data)
            return
        for frame in self._from_target.feed(data):
            self._target_frame(frame)

    def _target_frame(self, frame: Frame) -> None:
        call = self._calls.of_target(frame.stream)
        match frame.type:
            case http2.HEADERS:
                headers = self._calls.responses.decode(frame.payload)
                if call is not None and not call.back.dead:
                    self._response_headers(call, HeadersPart(headers, frame.ends))
            case http2.DATA:
                self._response_data(call, frame)
            case http2.RST_STREAM if call is not None:
                call.ended_there = True
                call.there.kill()
                if not call.back.dead:
                    call.back.beside(ResetPart(int.from_bytes(frame.payload)))
            case http2.WINDOW_UPDATE if call is not None:
                self._to_client(_renumbered(frame, call.client_id))
            case http2.GOAWAY:
                self._go_away(frame)
            case _ if not frame.stream:
                self._to_client(frame.to_bytes())

    def _response_headers(self, call: Call, part: HeadersPart) -> None:
        lane = call.back
        if lane.whole:
            if lane.current is None:
                self._message(call, lane, "reply", part)
            elif lane.takes:
                lane.add(part)
        elif part.ends:
            self._message(call, lane, "status", part)
        else:
            lane.beside(part)

    def _response_data(self, call: Call | None, frame: Frame) -> None:
        self._give_back(self._to_target, call.target_id if call else 0, frame.padding)
        if call is None or call.back.dead:
            self._give_back(self._to_target, call.target_id if call else 0, len(frame.payload))
        else:
            self._data(call, call.back, frame)

    def _go_away(self, frame: Frame) -> None:
        """The target takes no more calls: of those it has not seen the client must know that it may try again."""
        last = int.from_bytes(frame.payload[:4]) & _LAST_STREAM
        if last != _LAST_STREAM:
            self._calls.going_away = True
            for call in self._calls.beyond(last):
                self._calls.refuse(call)
            last = self._calls.last_client_id
        self._to_client(Frame(http2.GOAWAY, 0, 0, struct.pack(">I", last) + frame.payload[4:]).to_bytes())

    # -- messages ------------------------------------------------------------------------------------------------------

    def _message(self, call: Call, lane: Lane, what: str, first: Part) -> None:
        """A message begins."""
        toward_target = lane is call.there
        link = self._there if toward_target else self._back
        passage = lane.begin()
        passage.parts.append(first)
        doubles = what == "request" and not call.kind.stream
        fate, firing = link.send(passage, f"{call.kind.name} {what}", stream=not lane.whole, doubles=doubles)
        match fate:
            case Fate.LOST:
                lane.kill()
                self._lost_octets(call, first, toward_target=toward_target)
                if call.kind.stream:
                    self._later(lambda: self._calls.break_off(call))
            case Fate.BROKEN:
                self._lost_octets(call, first, toward_target=toward_target)
            case Fate.DOUBLED:
                call.doubling = firing
            case Fate.CARRIED:
                pass

    def _data(self, call: Call, lane: Lane, frame: Frame) -> None:
        if lane.whole:
            whole = DataPart(frame.payload, frame.ends)
            if lane.takes:
                lane.add(whole)
            else:
                self._lost_octets(call, whole, toward_target=lane is call.there)
            return
        pieces = list(lane.messages(frame.payload))
        for nr, (octets, begins) in enumerate(pieces, 1):
            part = DataPart(octets, frame.ends and nr == len(pieces))
            if not lane.takes:
                self._lost_octets(call, part, toward_target=lane is call.there)
            elif begins:
                self._message(call, lane, "message", part)
            else:
                lane.add(part)
        if not pieces and frame.ends:
            lane.beside(DataPart(b"", ends=True))

    def _lost_octets(self, call: Call, part: Part, *, toward_target: bool) -> None:
        if isinstance(part, DataPart):
            write, number = (self._to_client, call.client_id) if toward_target else (self._to_target, call.target_id)
            self._give_back(write, number, len(part.octets))

    @staticmethod
    def _give_back(write: Write, number: int, octets: int) -> None:
        """Let the sender send so many octets more: of the stream, if it is still known, and of the connection."""
        if octets:
            write(http2.window_frame(0, octets))
        if octets and number:
            write(http2.window_frame(number, octets))


def _renumbered(frame: Frame, number: int) -> bytes:
    return Frame(frame.type, frame.flags, number, frame.payload).to_bytes()
