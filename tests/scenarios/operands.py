"""What stands behind the name of a command: words, keys, masks, times, and the patterns registers are loaded with."""

from __future__ import annotations

import hashlib
from typing import Final

from fpu_core.tile import TILE_BYTES, TILE_COUNT
from fpu_core.x87 import ST_BYTES, ST_SPACE_OFFSET
from fpu_core.xfeature import (
    XFEATURE_CET_USER,
    XFEATURE_FP,
    XFEATURE_NAMES,
    XFEATURE_PKRU,
    XFEATURE_XTILE_DATA,
    feature_mask,
)
from tests.scenarios.block import ScenarioError

FEATURES: Final = {name: nr for nr, name in XFEATURE_NAMES.items()}
_UNITS_NS: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "min": 60_000_000_000}


class Words:
    """The words of one command. Each is taken once; ``end`` refuses what nobody took."""

    def __init__(self, text: str) -> None:
        self.name, *words = text.split()
        self._plain = [word for word in words if "=" not in word]
        #: KEY=VALUE words. An MSR is written as one too: ``wrmsr XFD=0``.
        self._keyed = dict(word.split("=", 1) for word in words if "=" in word)

    def take(self, what: str) -> str:
        """The next plain word; ``what`` says what is missing where there is none."""
        if not self._plain:
            raise ScenarioError(f"{self.name}: expected {what}")
        return self._plain.pop(0)

    def peek(self) -> str:
        """The next plain word, left where it is; empty for none."""
        return self._plain[0] if self._plain else ""

    def __len__(self) -> int:
        """How many plain words are left."""
        return len(self._plain)

    def flag(self, word: str) -> bool:
        """Whether the plain word ``word`` is there."""
        if word not in self._plain:
            return False
        self._plain.remove(word)
        return True

    def key(self, name: str, default: str = "") -> str:
        """The value of ``name=``, or ``default``."""
        return self._keyed.pop(name, default)

    def pair(self, what: str) -> tuple[str, str]:
        """The first KEY=VALUE word that is left."""
        for name in self._keyed:
            return name, self._keyed.pop(name)
        raise ScenarioError(f"{self.name}: expected {what}")

    def more(self) -> bool:
        """Whether a KEY=VALUE word is left."""
        return bool(self._keyed)

    def end(self) -> None:
        """Refuse words that mean nothing here."""
        left = [*self._plain, *(f"{name}={value}" for name, value in self._keyed.items())]
        if left:
            raise ScenarioError(f"{self.name}: cannot use {' '.join(left)}")


def number(text: str) -> int:
    """A number, decimal or 0x; ``1<<18`` is one too."""
    value, _, shift = text.partition("<<")
    try:
        return int(value, 0) << int(shift or "0", 0)
    except ValueError:
        raise ScenarioError(f"expected a number, got {text!r}") from None


def feature(text: str) -> int:
    """The number of a feature by its kernel name."""
    if text not in FEATURES:
        raise ScenarioError(f"expected one of {', '.join(FEATURES)}, got {text!r}")
    return FEATURES[text]


def mask(text: str) -> int:
    """A mask: 0x602e7, 0, 1<<18, feature names, or several of them joined by ``|``."""
    bits = 0
    for part in text.split("|"):
        bits |= number(part) if part[:1].isdigit() else feature_mask(feature(part))
    return bits


def duration_ns(text: str) -> int:
    """A time such as 100ms, in nanoseconds."""
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(digits) :]
    if not digits.isdecimal() or unit not in _UNITS_NS:
        raise ScenarioError(f"expected a time such as 100ms (units: {', '.join(_UNITS_NS)}), got {text!r}")
    return int(digits) * _UNITS_NS[unit]


def format_ns(value: int) -> str:
    """A time as one would write it: in the largest unit that leaves no rest."""
    for unit in ("s", "ms", "us"):
        if value % _UNITS_NS[unit] == 0:
            return f"{value // _UNITS_NS[unit]}{unit}"
    return f"{value}ns"


def span(feature_nr: int, size_bytes: int) -> tuple[int, int]:
    """Offset and length of what a pattern fills of a component of ``size_bytes``.

    Of x87 that is one register, ST0; of PKRU the 4 bytes that are the register.
    """
    if feature_nr == XFEATURE_FP:
        return ST_SPACE_OFFSET, ST_BYTES
    return (0, 4) if feature_nr == XFEATURE_PKRU else (0, size_bytes)


class Patterns:
    """Bytes by name, and back again."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._given: dict[bytes, str] = {}

    def bytes_of(self, name: str, length: int) -> bytes:
        """``length`` bytes that belong to ``name`` and to no other name."""
        if name not in self._names:
            self._names.append(name)
        return hashlib.shake_128(name.encode()).digest(length)

    def remember(self, name: str, data: bytes) -> None:
        """Call ``data``, which is no pattern, ``name`` from now on."""
        self._given[data] = name

    def name_of(self, data: bytes) -> str:
        """The name ``data`` was made from; the first bytes of one may be followed by zeros, as in a small tile."""
        if data in self._given or not any(data):
            return self._given.get(data, "zeros")
        for name in self._names:
            if data == self.bytes_of(name, len(data)):
                return name
        used = len(data.rstrip(b"\0"))
        for name in self._names:
            if data[:used] == self.bytes_of(name, used):
                return f"{name} ({used} of {len(data)} B, then zeros)"
        return f"unknown bytes {hashlib.sha256(data).hexdigest()[:12]}"

    def describe(self, feature_nr: int, raw: bytes) -> str:
        """The content of component ``feature_nr`` by name; tiles one by one."""
        if feature_nr == XFEATURE_XTILE_DATA and not self._is_one(raw):
            tiles = [raw[tile * TILE_BYTES : (tile + 1) * TILE_BYTES] for tile in range(TILE_COUNT)]
            found = [f"tmm{tile}={self.name_of(data)}" for tile, data in enumerate(tiles) if any(data)]
            return " ".join(found) or "zeros"
        if feature_nr == XFEATURE_CET_USER:
            return f"shadow stack at {int.from_bytes(raw[8:16], 'little'):#x}"
        offset, length = span(feature_nr, len(raw))
        return self.name_of(raw[offset : offset + length])

    def _is_one(self, raw: bytes) -> bool:
        return any(raw == self.bytes_of(name, len(raw)) for name in self._names)
