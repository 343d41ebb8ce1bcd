"""What each context's registers contain, kept in the plainest way there is: a dict of component -> bytes.

Nothing here knows of containers, swaps or layouts. A context is a task or a vCPU; what was loaded into it is what it
must read back. One thing is left open by the architecture: setting XFD[18] may or may not put the tiles into their init
state, so TILE_DATA has a short list of *candidates*, and the first look decides which it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fpu_core.config import FpuConfig
from fpu_core.fpstate import MXCSR_INIT
from fpu_core.layout import MXCSR_OFFSET
from fpu_core.x87 import FCW_INIT
from fpu_core.xfeature import XFEATURE_FP, XFEATURE_PKRU, XFEATURE_XTILE_CFG, XFEATURE_XTILE_DATA, for_each_set_bit

#: Bytes 24..31 of the x87 component are MXCSR and its mask, which belong to SSE.
_MXCSR_BYTES = slice(MXCSR_OFFSET, MXCSR_OFFSET + 8)


class NotWhatWasLoadedError(Exception):
    """A context reads back something it never loaded."""


def init_value(nr: int, size_bytes: int) -> bytes:
    """The init state of a component: zeros, but for the x87 control word."""
    head = FCW_INIT.to_bytes(2, "little") if nr == XFEATURE_FP else b""
    return head.ljust(size_bytes, b"\0")


def without_mxcsr(nr: int, raw: bytes) -> bytes:
    """The x87 component with MXCSR's bytes blanked, any other as it is."""
    if nr != XFEATURE_FP:
        return raw
    blanked = bytearray(raw)
    blanked[_MXCSR_BYTES] = bytes(8)
    return bytes(blanked)


def task_registers(config: FpuConfig) -> Registers:
    """The registers of a new program: all in their init state, but for PKRU."""
    return Registers(config, pkru=config.init_pkru)


@dataclass
class Registers:
    """The registers of one context. A component that is not in ``candidates`` is in its init state."""

    config: FpuConfig
    candidates: dict[int, list[bytes]] = field(default_factory=dict)
    mxcsr: int = MXCSR_INIT
    pkru: int = 0

    def features(self) -> list[int]:
        """The components that software can load here, PKRU aside: that one is kept in ``pkru``."""
        return [nr for nr in for_each_set_bit(self.config.user.max_features) if nr != XFEATURE_PKRU]

    def init(self, nr: int) -> bytes:
        """The init value of component ``nr``."""
        return init_value(nr, self.config.table.size_bytes(nr))

    def expected(self, nr: int) -> list[bytes]:
        """What a read of component ``nr`` may give."""
        return self.candidates.get(nr) or [self.init(nr)]

    def write(self, nr: int, offset: int, data: bytes) -> None:
        """``data`` was loaded at ``offset`` of component ``nr``."""
        if nr == XFEATURE_PKRU:
            self.pkru = int.from_bytes(data[:4], "little")
            return
        self.candidates[nr] = [
            before[:offset] + data + before[offset + len(data) :] for before in map(bytes, self.expected(nr))
        ]

    def release_tiles(self) -> None:
        """TILERELEASE, or what LDTILECFG begins with: both tile components are in their init state for certain."""
        self.candidates.pop(XFEATURE_XTILE_CFG, None)
        self.candidates.pop(XFEATURE_XTILE_DATA, None)

    def hide_tiles(self) -> None:
        """XFD[18] was set: the tiles may be gone when it is cleared again, or may not."""
        init = self.init(XFEATURE_XTILE_DATA)
        if init not in self.expected(XFEATURE_XTILE_DATA):
            self.candidates[XFEATURE_XTILE_DATA] = [*self.expected(XFEATURE_XTILE_DATA), init]

    def seen(self, nr: int, raw: bytes, *, who: str) -> None:
        """``who`` read component ``nr``: it must be what was loaded, and decides between candidates."""
        found = without_mxcsr(nr, raw)
        if found not in (without_mxcsr(nr, each) for each in self.expected(nr)):
            wanted = " or ".join(each.hex()[:80] for each in self.expected(nr))
            raise NotWhatWasLoadedError(f"{who}: component {nr} reads {found.hex()[:80]}..., loaded was {wanted}...")
        self.candidates[nr] = [found]

    def seen_all(self, found: Mapping[int, bytes], mxcsr: int, *, hidden: int, who: str) -> None:
        """``who`` holds ``found`` (component -> bytes, absent ones in init state); ``hidden`` ones cannot be seen."""
        for nr in self.features():
            if not hidden >> nr & 1:
                self.seen(nr, found.get(nr, self.init(nr)), who=who)
        if mxcsr != self.mxcsr:
            raise NotWhatWasLoadedError(f"{who}: MXCSR {mxcsr:#x}, loaded was {self.mxcsr:#x}")

    def cloned(self) -> Registers:
        """What a child of clone(2) starts with: everything but dynamic state."""
        kept = {nr: list(each) for nr, each in self.candidates.items() if nr != XFEATURE_XTILE_DATA}
        return Registers(self.config, kept, self.mxcsr, self.pkru)
