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
#: What gRPC for asyncio leaves behind for each stream that its client gives up, in bytes, with nothing of ours around
#: it: ``python -m tests.soak.floor``. A known leak of grpcio's (grpc/grpc#43360); it is taken off, and said.
GRPC_BYTES_PER_STREAM: Final = 128


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at a moment, and how many streams had been given up by their clients until then."""

    figures: Figures
    streams: int


@dataclass
class Samples:
    """Of one process, at even intervals."""

    samples: list[Sample] = field(default_factory=list)

    def verdict(self) -> tuple[str, list[str]]:
        """What there is to say, and what is not flat.

        A median of a quarter is untouched by what comes and goes, and a leak of anything per round shows in it: the two
        quarters are half a run apart.
        """
        rss = [each.figures.rss_kib for each in self.samples]
        fds = [each.figures.fds for each in self.samples]
        if len(rss) < SAMPLES_MIN:
            return f"{len(rss)} samples are too few to judge: resident {rss[-1]:,} KiB, {fds[-1]} descriptors", []
        (rss_then, rss_now), (fds_then, fds_now) = _quarters(rss), _quarters(fds)
        streams_then, streams_now = _quarters([each.streams for each in self.samples])
        known_kib = (streams_now - streams_then) * GRPC_BYTES_PER_STREAM / 1024
        said = (
            f"resident memory {rss_then:,.0f} -> {rss_now:,.0f} KiB, of that up to {known_kib:,.0f} KiB grpcio's for "
            f"{streams_now - streams_then:,.0f} streams given up, descriptors {fds_then:.0f} -> {fds_now:.0f} "
            f"(medians of the second and the last quarter of {len(rss)} samples)"
        )
        wrong = []
        if rss_now - known_kib > rss_then * RSS_FACTOR + RSS_SPARE_KIB:
            wrong.append("resident memory")
        if fds_now > fds_then + FDS_SPARE:
            wrong.append("descriptors")
        return said, wrong


def _quarters(values: Sequence[int]) -> tuple[float, float]:
    """The medians of the second quarter and of the last."""
    quarter = len(values) // 4
    return statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])
