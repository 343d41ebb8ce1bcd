"""Which records a picture shows: so many at most, chosen by number, around the violation where nobody says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fault_lab.pictures.recording import PictureError, Recording

#: What a page shows at most, and a still picture: beyond, neither can be read.
PAGE_RECORDS: Final = 10_000
STILL_RECORDS: Final = 300
#: Where nobody says: the violation stands at nine tenths of what is shown, since what led to it lies before it.
_BEFORE: Final = 0.9


@dataclass(frozen=True, slots=True)
class Window:
    """Records ``first`` to ``last``, both included, numbered from 0, of ``total``."""

    first: int
    last: int
    total: int

    @property
    def text(self) -> str:
        """What is shown of what there is."""
        return f"showing records {self.first:,} to {self.last:,} of {self.total:,}"


def choose(recording: Recording, first: int | None, last: int | None, most: int) -> Window:
    """Choose the records. Raises ``PictureError`` where the numbers cannot be right."""
    total = len(recording.records)
    end = total - 1
    if first is not None and not 0 <= first <= end:
        raise PictureError(f"--from: expected a record, 0 to {end}, got {first}")
    if last is not None and not (first or 0) <= last <= end:
        raise PictureError(f"--to: expected a record, {first or 0} to {end}, got {last}")
    if first is not None and last is not None:
        if last - first >= most:
            raise PictureError(f"--to: expected at most {most:,} records, got {last - first + 1:,}")
        return Window(first, last, total)
    if first is not None:
        return Window(first, min(end, first + most - 1), total)
    if last is not None:
        return Window(max(0, last - most + 1), last, total)
    violation = recording.violation
    begin = 0 if violation is None else max(0, min(violation.n - round(most * _BEFORE), total - most))
    return Window(begin, min(end, begin + most - 1), total)
