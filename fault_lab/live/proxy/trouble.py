"""What is wrong with one way of a link, for the bytes on it: one value, so that healing is one assignment."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What bytes meet that go one way. The default is a way that carries.

    ``delay_ns`` and up to ``jitter_ns`` on top, drawn for each chunk, which never overtake one another; at most
    ``bytes_per_s`` (0: no limit); writes cut into pieces of ``slice_bytes`` (0: as they come), ``slice_gap_ns`` apart;
    the end of a connection is told ``close_delay_ns`` late.

    ``stalled``: nothing is read, so that what is sent fills the socket's buffers and waits: a partition, in which TCP
    goes on trying. ``swallowing``: bytes are read and thrown away; nobody can go on with a connection that lost some,
    so it is reset when the way carries again.
    """

    delay_ns: int = 0
    jitter_ns: int = 0
    bytes_per_s: int = 0
    slice_bytes: int = 0
    slice_gap_ns: int = 0
    close_delay_ns: int = 0
    stalled: bool = False
    swallowing: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"{field.name}: expected 0 or more, got {getattr(self, field.name)}")
        if self.stalled and self.swallowing:
            raise ValueError("swallowing: expected false where stalled is set: what is not read cannot be thrown away")


#: A way that carries.
CLEAR: Final = Trouble()
