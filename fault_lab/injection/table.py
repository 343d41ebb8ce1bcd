"""FaultTable: the armed faults of one host, and what each point says when it is hit.

Attributes keep the kernel's names and its order of decision: fail-nth first; then probability 0, the filter (here the
scope), times, space, interval, chance; ``times`` is used up by a fault that fires.
Source: Documentation/fault-injection/fault-injection.rst; lib/fault-inject.c, should_fail_ex().
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fault_lab.injection.draw import PPM, draw_ppm


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultAttributes:
    """When an armed point fires.

    ``probability_ppm`` 0..1,000,000; ``interval`` 1 means every hit; ``times`` -1 means no limit; ``space`` is a budget
    in bytes that passes before anything fails; ``fail_nth`` 1 means the next hit, and then decides alone.
    """

    probability_ppm: int = PPM
    interval: int = 1
    times: int = -1
    space: int = 0
    fail_nth: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _check("probability_ppm", self.probability_ppm, 0, PPM, "0..1,000,000")
        _check("interval", self.interval, 1, None, "1 or more")
        _check("times", self.times, -1, None, "-1 (no limit) or more")
        _check("space", self.space, 0, None, "0 or more bytes")
        _check("fail_nth", self.fail_nth, 0, None, "0 (not used) or more")


class FaultAttributeError(ValueError):
    """A fault attribute out of range: ``field`` names it, ``expected`` says what would have been accepted."""

    def __init__(self, name: str, expected: str, got: object) -> None:
        super().__init__(f"{name}: expected {expected}, got {got!r}")
        self.field = name
        self.expected = expected
        self.got = got


def _check(name: str, value: int, least: int, most: int | None, expected: str) -> None:
    if value < least or (most is not None and value > most):
        raise FaultAttributeError(name, expected, value)


@dataclass(slots=True, kw_only=True)
class ArmedFault:
    """One armed fault. ``vm`` and ``vcpu`` narrow it to resource names; empty means any."""

    name: str
    point: str
    errno: int
    vm: str = ""
    vcpu: str = ""
    owner: str = ""
    attributes: FaultAttributes = field(default_factory=FaultAttributes)
    #: How often the point was reached inside the scope, and how often the fault fired.
    hits: int = 0
    fired: int = 0
    #: Hits past the space budget: what ``interval`` counts.
    counted: int = 0

    def matches(self, point: str, vm: str, vcpu: str) -> bool:
        """Whether a hit of ``point`` by ``vm`` and ``vcpu`` is this fault's business."""
        return self.point == point and self.vm in ("", vm) and self.vcpu in ("", vcpu)

    def should_fail(self, entity: str, size_bytes: int) -> bool:
        """Count a hit and decide it."""
        self.hits += 1
        attrs = self.attributes
        if attrs.fail_nth:
            if self.hits != attrs.fail_nth:
                return False
            self.fired += 1
            return True
        if attrs.probability_ppm == 0 or attrs.times == 0:
            return False
        if attrs.space > size_bytes:
            self.attributes = replace(attrs, space=attrs.space - size_bytes)
            return False
        self.counted += 1
        if attrs.interval > 1 and self.counted % attrs.interval:
            return False
        if draw_ppm(attrs.seed, self.point, entity, self.hits) >= attrs.probability_ppm:
            return False
        if attrs.times > 0:
            self.attributes = replace(attrs, times=attrs.times - 1)
        self.fired += 1
        return True


@dataclass(slots=True)
class FaultTable:
    """The armed faults by name, in the order they were armed."""

    armed: dict[str, ArmedFault] = field(default_factory=dict)

    def arm(self, fault: ArmedFault) -> None:
        """Add a fault; the caller has made its name unique."""
        self.armed[fault.name] = fault

    def disarm(self, name: str) -> ArmedFault | None:
        """Take a fault out; None if there is none of that name."""
        return self.armed.pop(name, None)

    def should_fail(self, point: str, vm: str, vcpu: str, size_bytes: int) -> int:
        """Tell every fault in scope about the hit; return the errno of the first that fires, 0 for none."""
        errno = 0
        for fault in self.armed.values():
            if fault.matches(point, vm, vcpu) and fault.should_fail(vcpu or vm, size_bytes) and not errno:
                errno = fault.errno
        return errno
