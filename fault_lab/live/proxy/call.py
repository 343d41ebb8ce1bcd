"""The calls under way on one connection, and what leaves of them: their numbers at both ends, and how each ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fault_lab.live.points import Firing
from fault_lab.live.proxy import http2
from fault_lab.live.proxy.http2 import Frame, HeaderBlocks, Headers
from fault_lab.live.proxy.lane import BrokenPart, DataPart, HeadersPart, Lane, Part, ResetPart
from fault_lab.live.proxy.methods import Kind

#: gRPC's own words for a connection that breaks.
_UNAVAILABLE: Final[Headers] = [(b"grpc-status", b"14"), (b"grpc-message", b"the connection was reset")]
_RESPONSE: Final[Headers] = [(b":status", b"200"), (b"content-type", b"application/grpc")]

Write = Callable[[bytes], None]


@dataclass(slots=True, eq=False)
class Call:
    """A stream of HTTP/2: its number on the client's side, and on the target's once it has left."""

    client_id: int
    kind: Kind
    there: Lane
    back: Lane
    headers: Headers
    target_id: int = 0
    #: WINDOW_UPDATEs of a client for a stream that the target does not know yet.
    early: list[bytes] = field(default_factory=list)
    answered: bool = False
    ended_there: bool = False
    ended_back: bool = False
    doubling: Firing | None = None
    octets: bytearray = field(default_factory=bytearray)


class Calls:
    """Those of one connection. A stream has its number at the target from when its headers leave."""

    def __init__(self, to_target: Write, to_client: Write) -> None:
        self._to_target, self._to_client = to_target, to_client
        self.requests, self.responses = HeaderBlocks(), HeaderBlocks()
        self._by_client: dict[int, Call] = {}
        self._by_target: dict[int, Call] = {}
        self.last_client_id = 0
        self._next_id = 1
        #: The target takes no more.
        self.going_away = False

    def of_client(self, number: int) -> Call | None:
        """The call by its number at the client."""
        return self._by_client.get(number)

    def of_target(self, number: int) -> Call | None:
        """The call by its number at the target."""
        return self._by_target.get(number)

    def beyond(self, last: int) -> list[Call]:
        """Those whose numbers at the target are higher."""
        return [call for number, call in self._by_target.items() if number > last]

    def open(self, number: int, kind: Kind, headers: Headers) -> Call:
        """The client begins a call."""
        self.last_client_id = number
        call = Call(
            number,
            kind,
            there=Lane(lambda part: self._emit_there(call, part), whole=not kind.requests),
            back=Lane(lambda part: self._emit_back(call, part), whole=not kind.responses),
            headers=headers,
        )
        self._by_client[number] = call
        return call

    # -- leaving -------------------------------------------------------------------------------------------------------

    def _emit_there(self, call: Call, part: Part) -> None:
        if isinstance(part, HeadersPart) and not call.target_id:
            if self.going_away:
                self.refuse(call)
                return
            call.target_id, self._next_id = self._next_id, self._next_id + 2
            self._by_target[call.target_id] = call
        match part:
            case HeadersPart(headers, ends):
                self._to_target(self.requests.frames(call.target_id, headers, ends=ends))
                for octets in call.early:
                    self._to_target(Frame(http2.WINDOW_UPDATE, 0, call.target_id, octets).to_bytes())
                call.early.clear()
                call.ended_there = ends
            case DataPart(octets, ends):
                self._to_target(_data_frame(call.target_id, octets, ends=ends))
                call.ended_there = ends
            case ResetPart(code):
                if call.target_id:
                    self._to_target(http2.reset_frame(call.target_id, code))
                call.ended_there = call.ended_back = True
            case BrokenPart():
                self.break_off(call)
        self._forget_ended(call)

    def _emit_back(self, call: Call, part: Part) -> None:
        match part:
            case HeadersPart(headers, ends):
                self._to_client(self.responses.frames(call.client_id, headers, ends=ends))
                call.answered = True
                call.ended_back = ends
            case DataPart(octets, ends):
                self._to_client(_data_frame(call.client_id, octets, ends=ends))
                call.ended_back = ends
            case ResetPart(code):
                self._to_client(http2.reset_frame(call.client_id, code))
                call.ended_there = call.ended_back = True
            case BrokenPart():
                self.break_off(call)
        self._forget_ended(call)

    def break_off(self, call: Call) -> None:
        """The call is over: UNAVAILABLE for the client, cancelled for the target."""
        if self._by_client.get(call.client_id) is not call:
            return
        call.there.kill()
        call.back.kill()
        if not call.ended_back:
            headers = _UNAVAILABLE if call.answered else [*_RESPONSE, *_UNAVAILABLE]
            self._to_client(self.responses.frames(call.client_id, headers, ends=True))
            if not call.ended_there or not call.target_id:
                self._to_client(http2.reset_frame(call.client_id, http2.NO_ERROR))
        if call.target_id:
            self._to_target(http2.reset_frame(call.target_id, http2.CANCEL))
        self.forget(call)

    def refuse(self, call: Call) -> None:
        """The target has not seen the call and will not: the client may try it again."""
        call.there.kill()
        call.back.kill()
        self._to_client(http2.reset_frame(call.client_id, http2.REFUSED_STREAM))
        self.forget(call)

    def _forget_ended(self, call: Call) -> None:
        if call.ended_there and call.ended_back:
            self.forget(call)

    def forget(self, call: Call) -> None:
        """It is over for both ends."""
        self._by_client.pop(call.client_id, None)
        self._by_target.pop(call.target_id, None)


def _data_frame(number: int, octets: bytes, *, ends: bool) -> bytes:
    return Frame(http2.DATA, http2.END_STREAM if ends else 0, number, octets).to_bytes()
