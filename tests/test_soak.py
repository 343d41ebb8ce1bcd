"""The soak: a moment of it against a live host, and the rule that says what is flat."""

from __future__ import annotations

import pytest

from tests.live.host import Figures
from tests.soak.judge import GRPC_BYTES_PER_STREAM, Sample, Samples
from tests.soak.run import Soak


@pytest.mark.timeout(600)
def test_a_moment_of_all_storms() -> None:
    """Every storm has its rounds, and when they are over nothing is left: no call, stream, session, exit or VM."""
    soak = Soak(seconds=5, seed=1)
    soak.run()
    assert soak.wrong == []
    assert set(soak.rounds) == {
        "connections",
        "abandoned calls",
        "slow readers",
        "cut streams",
        "forgotten sessions",
        "watchers",
        "exits",
        "refusals",
    }


def samples(*, kib_each: float = 0.0, fds_each: float = 0.0, streams_each: int = 0) -> Samples:
    """A run that warms up by 20 MiB in its first fifth, and then rises by so much a sample."""
    return Samples(
        [
            Sample(
                Figures(80_000 + min(nr, 40) * 512 + round(nr * kib_each) + nr % 7 * 100, 40 + round(nr * fds_each), 9),
                nr * streams_each,
            )
            for nr in range(200)
        ]
    )


@pytest.mark.parametrize(
    ("run", "wrong"),
    [
        pytest.param(samples(), [], id="warms up, and stays"),
        pytest.param(samples(kib_each=50), ["resident memory"], id="50 KiB a sample"),
        pytest.param(samples(fds_each=0.1), ["descriptors"], id="a descriptor every ten samples"),
        pytest.param(
            samples(kib_each=50, streams_each=50 * 1024 // GRPC_BYTES_PER_STREAM), [], id="all of it grpcio's"
        ),
        pytest.param(
            samples(kib_each=100, streams_each=50 * 1024 // GRPC_BYTES_PER_STREAM), ["resident memory"], id="half"
        ),
    ],
)
def test_what_is_flat(run: Samples, wrong: list[str]) -> None:
    """The last quarter beside the second; what grpcio is known to leave for each stream given up is taken off."""
    assert run.verdict()[1] == wrong


def test_a_short_run_says_that_it_is_short() -> None:
    """Nothing is concluded from it."""
    said, wrong = Samples(samples(kib_each=500).samples[:20]).verdict()
    assert "too few" in said
    assert wrong == []
