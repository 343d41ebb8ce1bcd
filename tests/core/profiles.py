"""Hypothesis profiles: how long the property tests look. ``FPSTATED_HYPOTHESIS_PROFILE=long`` looks longer.

``ci`` fits into a minute on a slow machine and starts from the same seed each time, so that a red run is red again;
``long`` draws anew each time and prints the blob that repeats a failure.
"""

from __future__ import annotations

import os
from typing import Final, TypeVar

from hypothesis import HealthCheck, Phase, settings

T = TypeVar("T")

PROFILE_VARIABLE: Final = "FPSTATED_HYPOTHESIS_PROFILE"

#: Slow machines and deep states are normal here; a deadline would be a timing assertion.
_COMMON: Final = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

settings.register_profile("ci", _COMMON, max_examples=150, stateful_step_count=60, derandomize=True, database=None)
settings.register_profile(
    "long",
    _COMMON,
    max_examples=1_000,
    stateful_step_count=120,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
)


def load_profile() -> None:
    """Load the profile that the environment names, ``ci`` where it names none."""
    settings.load_profile(os.environ.get(PROFILE_VARIABLE, "ci"))


def shorter(case: type[T]) -> type[T]:
    """Give a state machine's test case a quarter of the examples: it is one of several that differ little."""
    current = settings.default
    assert current is not None
    case.settings = settings(current, max_examples=max(1, current.max_examples // 4))  # type: ignore[attr-defined]
    return case


load_profile()
