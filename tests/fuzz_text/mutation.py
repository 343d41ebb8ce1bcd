"""The engine that is always there: seeds changed by chance, with words of the seeds themselves put elsewhere."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import FrameType
from typing import Final

from tests.fuzz.wire_bytes import changed
from tests.fuzz_text.targets import Target

#: Longer than any parser may take, on a machine that does much else.
HANG_S: Final = 10
_WORD: Final = re.compile(rb"[\w.-]+|\W")
_STRANGE: Final = (
    b"", b"0", b"-1", b"1e999", b"nan", b"99999999999999999999999", b"0x", b"\x00", b"\xff", b"\xc3\xa9",
    b"\xd9\xa3", b"\xe2\x80\xa8", b"[" * 5000, b'{"a":' * 3000, b"=" * 3, b"pattern=1:99999999999",
    b"zero:4294967296", b"True", b"null", b"{}", b"[]", b'""',
)  # fmt: skip


@contextmanager
def no_hang() -> Iterator[None]:
    """Raise ``TimeoutError`` in the middle of what takes too long. On the main thread."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer within {HANG_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def inputs(target: Target, rng: Random) -> Iterator[bytes]:
    """Its seeds, then changes of them, for ever."""
    yield from target.seeds
    while True:
        raw = rng.choice(target.seeds)
        for _ in range(rng.choice((1, 1, 2, 4))):
            raw = _words_changed(rng, raw) if rng.random() < 0.7 else changed(rng, raw, rng.choice(target.seeds))
        yield raw


def _words_changed(rng: Random, raw: bytes) -> bytes:
    words = _WORD.findall(raw) or [b""]
    at = rng.randrange(len(words))
    choice = rng.randrange(5)
    if choice == 0:
        words[at] = rng.choice(_STRANGE)
    elif choice == 1:
        words[at] = rng.choice(words)
    elif choice == 2:
        del words[at : at + rng.choice((1, 1, 5))]
    elif choice == 3:
        words.insert(at, rng.choice(words))
    else:
        words[at : at + 1] = [words[at]] * rng.choice((2, 3, 300))
    return b"".join(words)[:200_000]


def run(target: Target, *, seconds: float, seed: int, least: int = 1) -> tuple[int, bytes, BaseException | None]:
    """Fuzz one target, with ``least`` inputs at least: how many, and the one that failed with what it raised."""
    until = time.monotonic() + seconds
    for count, raw in enumerate(inputs(target, Random(f"{seed}/{target.name}")), start=1):
        try:
            with no_hang():
                target.check(raw)
        except Exception as error:  # noqa: BLE001 -- that is what is looked for
            return count, raw, error
        if time.monotonic() > until and count >= max(least, len(target.seeds)):
            return count, b"", None
    raise AssertionError("there is always another input")
