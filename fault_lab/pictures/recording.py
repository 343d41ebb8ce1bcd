"""A recorded run, read to be drawn: simulated or live, of this release or another, as long as its records are.

A replay has to refuse a history of other rules; a picture only shows what was written down.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_NS_MAX: Final = 1 << 62


class PictureError(ValueError):
    """A file that cannot be drawn. The text names the line or the field, and what was expected."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its number, virtual nanoseconds, the number of its cause (-1: none), its type, and the rest."""

    n: int
    t: int
    cause: int
    type: str
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Return a field as text; empty where it is not there."""
        value = self.fields.get(name)
        return "" if value is None else str(value)

    def number(self, name: str) -> int:
        """Return a field as a number; 0 where it is none."""
        value = self.fields.get(name)
        return value if isinstance(value, int) else 0


@dataclass(frozen=True, slots=True)
class Recording:
    """A run: what its file begins with, its records by number, and its certificate (empty where the file has none)."""

    head: Mapping[str, Any]
    records: Sequence[Record]
    certificate: Mapping[str, Any]

    @property
    def live(self) -> bool:
        """Whether the processes were real ones, and the time with them."""
        return self.head.get("live") is True

    @property
    def plan(self) -> Mapping[str, Any]:
        """The plan as JSON; empty where there is none."""
        found = self.head.get("plan")
        return found if isinstance(found, dict) else {}

    @property
    def violation(self) -> Record | None:
        """The first check that did not hold."""
        return next((record for record in self.records if record.type == "violation"), None)


def read_recording(text: str) -> Recording:
    """Read what ``fpstated sim run --history`` has written. Raises ``PictureError``."""
    lines = text.splitlines()
    head = _object(lines[0] if lines else "", 1)
    if "sim" not in head and head.get("live") is not True:
        raise PictureError('line 1: expected the head of a history, with "sim" or "live"')
    records: list[Record] = []
    certificate: dict[str, Any] = {}
    for number, line in enumerate(lines[1:], 2):
        found = _object(line, number)
        if isinstance(found.get("certificate"), dict):
            certificate = found["certificate"]
        else:
            records.append(_record(found, number, len(records), records[-1].t if records else 0))
    if not records:
        raise PictureError("line 2: expected a record")
    return Recording(head, records, certificate)


def records_of(lines: Sequence[str]) -> list[Record]:
    """The records of a history that is still in memory. Raises ``PictureError``."""
    records: list[Record] = []
    for number, line in enumerate(lines):
        records.append(_record(_object(line, number + 1), number + 1, number, 0))
    return records


def _record(found: dict[str, Any], line: int, n: int, earliest: int) -> Record:
    fields = {name: value for name, value in found.items() if name not in ("n", "t", "cause", "type", "chain")}
    t, cause, kind = found.get("t"), found.get("cause", -1), found.get("type")
    if found.get("n") != n:
        raise PictureError(f"line {line}: n: expected {n}, the number of the record, got {found.get('n')!r}")
    if not isinstance(t, int) or not earliest <= t < _NS_MAX:
        raise PictureError(f"line {line}: t: expected nanoseconds, not before {earliest}, got {t!r}")
    if not isinstance(cause, int) or not -1 <= cause < n:
        raise PictureError(f"line {line}: cause: expected the number of a record before it, or -1, got {cause!r}")
    if not isinstance(kind, str) or not kind:
        raise PictureError(f"line {line}: type: expected a name, got {kind!r}")
    return Record(n, t, cause, kind, fields)


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PictureError(f"line {number}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise PictureError(f"line {number}: expected an object")
    return found
