"""How long to wait before trying again: exponential, bounded, and spread out so that many do not come back at once.

The spread is not random: it is drawn from (seed, name, attempt), so the same controller waits the same time again when
a run is repeated, and two vCPUs that failed together still come back apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fault_lab.injection.draw import PPM, draw_ppm
from vmm_controller.policy.decision import DELAY_S_MAX, DELAY_S_MIN

#: (name, attempt) -> a number in 0..999,999. `attempt` counts from 1.
Draw = Callable[[str, int], int]

_POINT = "vmm_controller.backoff"


def seeded_draw(seed: int) -> Draw:
    """Return the draw of one seed: the same number for the same (name, attempt), always and anywhere."""

    def draw(name: str, attempt: int) -> int:
        return draw_ppm(seed, _POINT, name, attempt)

    return draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """`base_s`, then `factor` times as long for each further attempt, up to `max_s`; less up to `jitter` of it."""

    base_s: float = 0.1
    factor: float = 2.0
    max_s: float = 5.0
    #: Share of the delay that the draw may take off, 0 (none) to 1 (all of it).
    jitter: float = 0.5

    def __post_init__(self) -> None:
        _check("base", self.base_s, DELAY_S_MIN, DELAY_S_MAX)
        _check("factor", self.factor, 1.0, 1000.0)
        _check("max", self.max_s, self.base_s, DELAY_S_MAX)
        _check("jitter", self.jitter, 0.0, 1.0)

    def delay_s(self, name: str, attempt: int, draw: Draw) -> float:
        """Return the wait in seconds after the failure of `attempt` (from 1), at microsecond precision."""
        longest = self._longest_s(attempt)
        taken_off = longest * self.jitter * draw(name, attempt) / PPM
        return max(round(longest - taken_off, 6), DELAY_S_MIN)

    def _longest_s(self, attempt: int) -> float:
        try:
            return min(self.base_s * self.factor ** (attempt - 1), self.max_s)
        except OverflowError:
            return self.max_s


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value:g}")
