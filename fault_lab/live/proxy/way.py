"""One way of a link: the trouble that bytes meet on it, and what has gone over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fault_lab.injection.draw import draw_between
from fault_lab.live.proxy.trouble import CLEAR, Trouble

if TYPE_CHECKING:
    from fault_lab.live.proxy.pipe import Pipe


class Way:
    """From one node to another, over every connection of a proxy. ``name`` is the entity of its hits, ``from->to``."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.trouble = CLEAR
        self.pipes: set[Pipe] = set()
        self.bytes = 0
        self.swallowed_bytes = 0
        self.messages = 0
        self.fired = 0
        self._seed = seed
        self._drawn = 0
        self._corrupt_bits = 0

    def set(self, trouble: Trouble) -> None:
        """From now on this is what is wrong. To be called in the proxy's event loop."""
        self.trouble = CLEAR if trouble == CLEAR else trouble
        for pipe in list(self.pipes):
            pipe.changed()

    def heal(self) -> None:
        """Let it carry again: what was stalled or late arrives, what had lost bytes is reset."""
        self._corrupt_bits = 0
        self.set(CLEAR)

    def corrupt(self, bits: int = 1) -> None:
        """Flip ``bits`` drawn bits of the next chunk. TLS notices every one; HTTP/2 alone those outside of payloads."""
        if bits < 1:
            raise ValueError(f"bits: expected 1 or more, got {bits}")
        self._corrupt_bits = bits

    def passing(self, data: bytes) -> bytes:
        """Count a chunk that arrives; return it as it goes on."""
        self.bytes += len(data)
        if not self._corrupt_bits:
            return data
        bits, self._corrupt_bits = self._corrupt_bits, 0
        damaged = bytearray(data)
        for _ in range(bits):
            place = self.draw("bit", high=8 * len(data) - 1)
            damaged[place // 8] ^= 1 << place % 8
        self.fired += 1
        return bytes(damaged)

    def draw(self, what: str, *, high: int) -> int:
        """Draw a number in 0..``high``; chunks depend on when they are read, so no run repeats another's exactly."""
        self._drawn += 1
        return draw_between(self._seed, f"link.bytes#{what}", self.name, self._drawn, low=0, high=high)
