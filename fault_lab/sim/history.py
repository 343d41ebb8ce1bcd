"""The history of a run: one JSON object a line, each with the number of the line that led to it, chained by digests.

    {"n": 12, "t": 5120000, "cause": 9, "type": "invoke", "f": "SubmitEvents", "process": "vms/a/vcpus/0", ...}

``t`` is virtual nanoseconds. Calls are as Jepsen has them: ``invoke``, then one of ``ok``, ``fail`` (it has not
happened) and ``info`` (it may or may not have happened, or may happen still). The rest says what went wrong on purpose
(``fault``), which messages have arrived or never will (``message``, with the time at which each was sent), which links
hold them (``link``), what a command made of a vCPU (``vcpu``), what was decided (``decision``), how exits went on
(``exit``), what became of nodes (``node``) and guests (``guest``), and where phases begin (``phase``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator

#: Hexadecimal digits of a line's place in the chain.
_LINK = 16
#: An encoder made once: ``json.dumps`` makes one a call.
_encode = json.JSONEncoder(separators=(",", ":")).encode


class History:
    """What has happened. ``cause`` is the number of the record that whatever comes next is due to; -1 for none."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.cause = -1
        self._hasher = hashlib.sha256()

    def add(self, t_ns: int, kind: str, /, **fields: object) -> int:
        """Write a record and return its number; what follows is caused by it."""
        n = len(self.lines)
        record = {"n": n, "t": t_ns, "cause": self.cause, "type": kind, **fields}
        line = _encode(record)
        self.lines.append(line)
        self._hasher.update(line.encode())
        self.cause = n
        return n

    @property
    def digest(self) -> str:
        """SHA-256 of all lines, one behind the other."""
        return self._hasher.hexdigest()


def chained(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines with ``chain``: the beginning of the SHA-256 of everything up to and with that line."""
    hasher = hashlib.sha256()
    for line in lines:
        hasher.update(line.encode())
        yield f'{line[:-1]},"chain":"{hasher.hexdigest()[:_LINK]}"}}'


def first_divergence(one: list[str], other: list[str]) -> int | None:
    """The number of the first record in which two histories differ; None where they are the same."""
    for n, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return n
    return None if len(one) == len(other) else min(len(one), len(other))
