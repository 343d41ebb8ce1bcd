"""The mark: a small file that says which record was committed last, beside the journal that holds it.

SQLite ends the log of its commits at the first frame whose checksum does not fit. After a power cut that is what one
wants: the frame was never synced, so nobody was told of it. But a bit that flips in a frame that was synced looks the
same, and takes with it, without a word, everything that was acknowledged since, the journal's own books included. The
mark is outside of that file. It is written after each commit and not synced, so it costs one write to memory; what it
says was true when it was written, so it may be behind the journal and is never ahead of it.

    mark behind the journal     the process or the machine ended between commit and mark: nothing is wrong
    mark ahead of the journal   records that were acknowledged are gone: damage
    mark of another record      the journal's end is not the one that was acknowledged: damage
"""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final

MARK: Final = "committed"
#: Number and CRC of the last record, and a CRC-32 of both.
_FORM: Final = struct.Struct("<QII")
_SUMMED_BYTES: Final = 12


class BadMarkError(Exception):
    """The mark is not as it was written."""


class Mark:
    """The mark of a directory, open for writing."""

    def __init__(self, directory: Path) -> None:
        """Open it, or make one that says nothing yet. Raises ``OSError``."""
        self._fd = os.open(directory / MARK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def put(self, n: int, crc: int) -> None:
        """Record ``n`` is on the disk."""
        summed = _FORM.pack(n, crc, 0)[:_SUMMED_BYTES]
        # A mark that cannot be written is one that is behind.
        with suppress(OSError):
            os.pwrite(self._fd, summed + zlib.crc32(summed).to_bytes(4, "little"), 0)

    def close(self) -> None:
        """Let it survive a power cut, and close it."""
        with suppress(OSError):
            os.fsync(self._fd)
        os.close(self._fd)


def read_mark(directory: Path) -> tuple[int, int] | None:
    """Return the number and the CRC of the record that was committed last; None where nobody has said.

    Raises ``BadMarkError``, ``OSError``.
    """
    try:
        raw = (directory / MARK).read_bytes()
    except FileNotFoundError:
        return None
    if not raw:
        return None
    if len(raw) != _FORM.size or zlib.crc32(raw[:_SUMMED_BYTES]).to_bytes(4, "little") != raw[_SUMMED_BYTES:]:
        raise BadMarkError(f"{directory / MARK} is damaged")
    n, crc, _ = _FORM.unpack(raw)
    return n, crc
