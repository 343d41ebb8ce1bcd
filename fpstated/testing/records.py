"""A history to assert on: the records of a run, as ``fpstated sim run --history`` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

Record = Mapping[str, Any]


class Records(Sequence[Record]):
    """Records in their order. ``records.of("exit", state="open")`` are those of a type with these fields."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [json.loads(line) for line in self._lines[index]]
        found: Record = json.loads(self._lines[index])
        return found

    def of(self, kind: str, /, **fields: object) -> list[Record]:
        """Those of a type (``fault``, ``exit``, ``decision``, ``node``, ``guest``, ...) with these fields."""
        return [each for each in self if each["type"] == kind and fields.items() <= each.items()]

    def causes(self, record: Record) -> Iterator[Record]:
        """What led to a record: its cause, the cause of that, and so on."""
        while record["cause"] >= 0:
            record = self[record["cause"]]
            yield record

    def __repr__(self) -> str:
        return f"<Records {len(self)}>"
