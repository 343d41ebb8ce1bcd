"""What a differential kind says: how many rows it judged, and the first difference it met."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class SkippedError(Exception):
    """This machine cannot do it; the text says what is missing."""


class NotModelledError(Exception):
    """A row has a form, or uses an operation, that the model does not have. The text names the row."""


def load_file(path: Path) -> Any:  # noqa: ANN401 -- a JSON value
    """Read a data file, plain (``.json``) or compressed (``.json.gz``). Raises what reading and decoding raise."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def load_rows(path: Path, key: str = "rows") -> list[dict[str, Any]]:
    """Read the list ``key`` of a data file; ``ValueError`` where there is no list of that name."""
    return rows_of(load_file(path), key)


def rows_of(data: Any, key: str = "rows") -> list[dict[str, Any]]:  # noqa: ANN401 -- a JSON value
    """Return the list ``key`` of a file that has been read; ``ValueError`` where there is no list of that name."""
    rows = data.get(key) if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f"expected an object with a list {key!r}")  # noqa: TRY004 -- the file's value, not a type of ours
    return rows


@dataclass
class Report:
    """Counts of one run. ``differences`` holds one readable text each."""

    kind: str
    rows: int = 0
    #: What is counted: rows of a file, or rounds of a live comparison.
    unit: str = "rows"
    extra: str = ""
    #: What else is worth a line, before the figure.
    notes: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def compare(self, where: str, key: str, ours: object, theirs: object) -> bool:
        """Note a difference and return False unless ``ours == theirs``."""
        if ours == theirs:
            return True
        self.differences.append(f"{where}: {key}\n    data:  {theirs}\n    model: {ours}")
        return False

    def lines(self, limit: int = 1) -> Iterator[str]:
        """Yield the first ``limit`` differences, the notes, and last the one-line figure."""
        yield from self.differences[:limit]
        yield from (f"{self.kind}: {note}" for note in self.notes)
        yield f"{self.kind}: {self.rows} {self.unit}{self.extra}, {len(self.differences)} differ"
