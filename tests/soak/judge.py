"""Flat or not: the figures of a run, and the rule by which they are judged."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.live.host import Figures

#: Below so many samples a run is too short to say anything of memory.
SAMPLES_MIN: Final = 40
#: What the median of the last quarter may have above that of the second: the first has warmed up.
RSS_FACTOR: Final = 1.03
RSS_SPARE_KIB: Final = 1024
FDS_SPARE: Final = 4


@dataclass
class Samples:
    """Of one process, at even intervals."""

    figures: list[Figures] = field(default_factory=list)

    def verdict(self) -> tuple[str, list[str]]:
        """What there is to say, and what is not flat.

        A median of a quarter is untouched by what comes and goes, and a leak of anything per round shows in it: the two
        quarters are half a run apart.
        """
        rss = [each.rss_kib for each in self.figures]
        fds = [each.fds for each in self.figures]
        if len(rss) < SAMPLES_MIN:
            return f"{len(rss)} samples are too few to judge: resident {rss[-1]:,} KiB, {fds[-1]} descriptors", []
        (rss_then, rss_now), (fds_then, fds_now) = _quarters(rss), _quarters(fds)
        said = (
            f"resident memory {rss_then:,.0f} -> {rss_now:,.0f} KiB, descriptors {fds_then:.0f} -> {fds_now:.0f} "
            f"(medians of the second and the last quarter of {len(rss)} samples)"
        )
        wrong = []
        if rss_now > rss_then * RSS_FACTOR + RSS_SPARE_KIB:
            wrong.append("resident memory")
        if fds_now > fds_then + FDS_SPARE:
            wrong.append("descriptors")
        return said, wrong


def _quarters(values: Sequence[int]) -> tuple[float, float]:
    """The medians of the second quarter and of the last."""
    quarter = len(values) // 4
    return statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])
