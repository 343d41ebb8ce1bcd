"""HTTP/2 as far as a proxy needs it: frames in, frames out, and header blocks that depend on no other.

The client's header blocks refer to a table that all earlier ones have built, so a block that is lost or late would
change the meaning of those behind it. Hence each is decoded where it arrives, and encoded anew, without a table, where
it leaves.

Source: RFC 9113, sections 4 and 6; RFC 7541.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import hpack

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, PRIORITISED = 0x1, 0x4, 0x8, 0x20
NO_ERROR, REFUSED_STREAM, CANCEL = 0x0, 0x7, 0x8

#: SETTINGS_MAX_FRAME_SIZE that every receiver takes.
_FRAME_MAX: Final = 16_384
_HEADER_LIST_MAX: Final = 1 << 24
_STREAM_MASK: Final = (1 << 31) - 1

Headers = list[tuple[bytes, bytes]]


class NotHttp2Error(ValueError):
    """These bytes are no HTTP/2."""


@dataclass(slots=True)
class Frame:
    """A frame without its padding. Of HEADERS, the whole block with its continuations; ``padding`` counts octets."""

    type: int
    flags: int
    stream: int
    payload: bytes
    padding: int = 0

    @property
    def ends(self) -> bool:
        """Whether it is the last of its stream and way."""
        return self.type in (DATA, HEADERS) and bool(self.flags & END_STREAM)

    def to_bytes(self) -> bytes:
        """As it goes out."""
        size = len(self.payload)
        head = struct.pack(">BHBBI", size >> 16, size & 0xFFFF, self.type, self.flags & ~PADDED, self.stream)
        return head + self.payload


class FrameReader:
    """Cuts one way of a connection into frames. ``preface`` is what comes before the first: the client's."""

    def __init__(self, preface: bytes = b"") -> None:
        self._preface = preface
        self._unread = bytearray()
        self._block: Frame | None = None

    def rest(self) -> bytes:
        """What has been fed and is not part of a frame."""
        return bytes(self._unread)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that ``data`` completes. Raises ``NotHttp2Error``."""
        self._unread += data
        if self._preface:
            if not self._preface.startswith(self._unread[: len(self._preface)]):
                raise NotHttp2Error("expected the client's preface")
            if len(self._unread) < len(self._preface):
                return
            del self._unread[: len(self._preface)]
            self._preface = b""
        while len(self._unread) >= 9:
            high, low, kind, flags, stream = struct.unpack_from(">BHBBI", self._unread)
            size = high << 16 | low
            if len(self._unread) < 9 + size:
                return
            payload = bytes(self._unread[9 : 9 + size])
            del self._unread[: 9 + size]
            frame = self._joined(_unpadded(Frame(kind, flags, stream & _STREAM_MASK, payload)))
            if frame is not None:
                yield frame

    def _joined(self, frame: Frame) -> Frame | None:
        """Put a header block together: nothing may come between its frames."""
        if frame.type == CONTINUATION:
            if self._block is None:
                raise NotHttp2Error("CONTINUATION: expected HEADERS before it")
            self._block.payload += frame.payload
            self._block.flags |= frame.flags & END_HEADERS
        elif frame.type == HEADERS:
            self._block = frame
        else:
            return frame
        if not self._block.flags & END_HEADERS:
            return None
        whole, self._block = self._block, None
        return whole


def _unpadded(frame: Frame) -> Frame:
    if frame.type not in (DATA, HEADERS):
        return frame
    payload = frame.payload
    if frame.flags & PADDED and payload:
        padding = payload[0]
        frame.padding = padding + 1
        payload = payload[1 : len(payload) - padding]
    if frame.type == HEADERS and frame.flags & PRIORITISED:
        payload = payload[5:]
    frame.payload = payload
    frame.flags &= ~(PADDED | (PRIORITISED if frame.type == HEADERS else 0))
    return frame


class HeaderBlocks:
    """The header blocks of one way: read with the sender's table, written without one."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=_HEADER_LIST_MAX)
        # The two ends agree on the size by their SETTINGS, which pass; whatever it is, the sender keeps to it.
        self._decoder.max_allowed_table_size = _HEADER_LIST_MAX
        self._encoder = hpack.Encoder()
        self._encoder.header_table_size = 0

    def decode(self, block: bytes) -> Headers:
        """Read a block, in the order in which they arrive. Raises ``NotHttp2Error``."""
        try:
            return [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except hpack.HPACKError as error:
            raise NotHttp2Error(f"a header block: {error}") from error

    def frames(self, stream: int, headers: Headers, *, ends: bool) -> bytes:
        """Write a block, in the order in which they leave."""
        block = self._encoder.encode(headers, huffman=False)
        pieces = [block[at : at + _FRAME_MAX] for at in range(0, len(block), _FRAME_MAX)] or [b""]
        frames = [Frame(CONTINUATION, 0, stream, piece) for piece in pieces]
        frames[0].type, frames[0].flags = HEADERS, END_STREAM if ends else 0
        frames[-1].flags |= END_HEADERS
        return b"".join(frame.to_bytes() for frame in frames)


def reset_frame(stream: int, code: int) -> bytes:
    """RST_STREAM."""
    return Frame(RST_STREAM, 0, stream, struct.pack(">I", code)).to_bytes()


def window_frame(stream: int, octets: int) -> bytes:
    """WINDOW_UPDATE, for octets that the receiver will never see; stream 0 is the connection."""
    return Frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", octets)).to_bytes()
