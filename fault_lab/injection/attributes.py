"""FaultAttributes: which hits of a point fire, in the names and the order of the kernel's fault injection.

Two orders, by the release that brought them: until 6.2 the stack filter came last, since 6.3 it comes before ``space``
and before ``fail_nth`` counts, so that a hit from elsewhere uses nothing up.

    2.6.20    fail-nth; probability 0; task filter; times; space; interval; chance; stack filter
    6.3       fail-nth among the hits the stack filter lets through;
              probability 0; task filter; times; stack filter; space; interval; chance

Whoever fires uses up one of ``times``, by fail-nth too. Before all that stand the filters of the capability
(``min_order``, ``ignore_gfp_wait``, ``ignore_gfp_highmem``): what they keep away is not counted at all.

Source: lib/fault-inject.c, should_fail_ex() and fail_stacktrace(); mm/fail_page_alloc.c, __should_fail_alloc_page();
Documentation/fault-injection/fault-injection.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fault_lab.injection.draw import PPM

#: The orders of decision, the newest first.
SHOULD_FAIL_ORDERS: Final = ("6.3", "2.6.20")
#: MAX_STACK_TRACE_DEPTH.
STACKTRACE_DEPTH_MAX: Final = 32
_PAGE: Final = 4096
_ORDER_MAX: Final = 63
_PERCENT: Final = PPM // 100


class FaultAttributeError(ValueError):
    """A fault attribute out of range: ``field`` names it, ``expected`` says what would have been accepted."""

    def __init__(self, name: str, expected: str, got: object) -> None:
        super().__init__(f"{name}: expected {expected}, got {got!r}")
        self.field = name
        self.expected = expected
        self.got = got


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultAttributes:
    """When an armed point fires. The defaults fire at every hit; the kernel's own never do, and once at most.

    ``probability_ppm`` 0..1,000,000; ``interval`` 1 means every hit; ``times`` -1 means no limit; ``space`` is a budget
    in bytes that passes before anything fails; ``fail_nth`` 1 means the next hit, and then decides alone.

    The filters, in our terms. ``task_filter``: only a VM that carries the label ``make-it-fail``. ``require`` and
    ``reject``: what stands among the innermost ``stacktrace_depth`` names of the hit's trace must be one of ``require``
    (empty: whatever) and none of ``reject``. ``min_order``: allocations of at least 2**n pages of 4 KiB.
    ``ignore_gfp_wait`` and ``ignore_gfp_highmem``: leave alone what may sleep, or what may lie in high memory; a
    container is both, so either of them keeps every fault of an allocation from firing, as it does in the kernel.
    """

    probability_ppm: int = PPM
    interval: int = 1
    times: int = -1
    space: int = 0
    fail_nth: int = 0
    seed: int = 0
    #: 0: not logged; 1: a line for each fault that fires; 2: with the trace of the hit.
    verbose: int = 1
    #: At most so many lines in so many milliseconds; 0 for no limit.
    verbose_ratelimit_interval_ms: int = 0
    verbose_ratelimit_burst: int = 10
    task_filter: bool = False
    stacktrace_depth: int = STACKTRACE_DEPTH_MAX
    require: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()
    min_order: int = 0
    ignore_gfp_wait: bool = False
    ignore_gfp_highmem: bool = False
    should_fail_order: str = SHOULD_FAIL_ORDERS[0]

    def __post_init__(self) -> None:
        _check("probability_ppm", self.probability_ppm, 0, PPM, "0..1,000,000")
        _check("interval", self.interval, 1, None, "1 or more")
        _check("times", self.times, -1, None, "-1 (no limit) or more")
        _check("space", self.space, 0, None, "0 or more bytes")
        _check("fail_nth", self.fail_nth, 0, None, "0 (not used) or more")
        _check("verbose", self.verbose, 0, 2, "0, 1 or 2")
        _check("verbose_ratelimit_interval_ms", self.verbose_ratelimit_interval_ms, 0, None, "0 or more")
        _check("verbose_ratelimit_burst", self.verbose_ratelimit_burst, 0, None, "0 or more")
        _check("stacktrace_depth", self.stacktrace_depth, 0, STACKTRACE_DEPTH_MAX, f"0..{STACKTRACE_DEPTH_MAX}")
        _check("min_order", self.min_order, 0, _ORDER_MAX, f"0..{_ORDER_MAX}")
        if self.should_fail_order not in SHOULD_FAIL_ORDERS:
            raise FaultAttributeError(
                "should_fail_order", f"one of {', '.join(SHOULD_FAIL_ORDERS)}", self.should_fail_order
            )

    def stack_passes(self, trace: tuple[str, ...]) -> bool:
        """The stack filter: ``trace`` names who led to the hit, the innermost first."""
        if not self.stacktrace_depth or not (self.require or self.reject):
            return not self.require
        seen = trace[: self.stacktrace_depth]
        if any(name in self.reject for name in seen):
            return False
        return not self.require or any(name in self.require for name in seen)

    def alloc_passes(self, size_bytes: int) -> bool:
        """The filters of fail_page_alloc, for an allocation that may sleep and lie in high memory."""
        return not self.ignore_gfp_wait and not self.ignore_gfp_highmem and order_of(size_bytes) >= self.min_order


def order_of(size_bytes: int) -> int:
    """get_order(): the smallest n with 2**n pages of 4 KiB for ``size_bytes``."""
    return max(0, (size_bytes - 1) // _PAGE).bit_length()


def parse_attributes(text: str) -> FaultAttributes:
    """Read the kernel's boot form, ``<interval>,<probability>,<space>,<times>`` with the probability in percent.

    Stricter than setup_fault_attr(), which reads what it can: four decimal numbers and nothing else. An interval of 0
    is every hit, as there. Raises ``FaultAttributeError``.
    """
    form = "<interval>,<probability>,<space>,<times>: four numbers, the probability in percent"
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(_is_number(part) for part in parts):
        raise FaultAttributeError("attr", form, text)
    interval, percent, space, times = map(int, parts)
    _check("probability", percent, 0, 100, "0..100 percent")
    return FaultAttributes(interval=interval or 1, probability_ppm=percent * _PERCENT, space=space, times=times)


def _is_number(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal()


def _check(name: str, value: int, least: int, most: int | None, expected: str) -> None:
    if value < least or (most is not None and value > most):
        raise FaultAttributeError(name, expected, value)
