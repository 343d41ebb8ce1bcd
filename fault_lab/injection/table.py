"""FaultTable: the armed faults of one world, and what each point says when it is hit.

A hit concerns a fault when the point is its own, the selector fits, the window is open and the gate let the fault into
this run. Those hits it counts; which of them fire is ``attributes``' business.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fault_lab.injection.action import Action, Delay, FailErrno, Hold
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.draw import PPM, draw_between, draw_ppm
from fault_lab.injection.hit import Hit, Selector, Window


@dataclass(slots=True, kw_only=True)
class ArmedFault:
    """One armed fault. ``selector`` narrows it to somebody's hits; ``owner`` says who armed it."""

    name: str
    point: str
    action: Action
    owner: str = ""
    selector: Selector = field(default_factory=Selector)
    attributes: FaultAttributes = field(default_factory=FaultAttributes)
    window: Window = field(default_factory=Window)
    #: Of a run, so many parts per million have this fault at all, as its seed draws it.
    gate_ppm: int = PPM
    #: When it was armed, on the clock and in the count of events of its hits.
    armed_ns: int = 0
    armed_event: int = 0
    #: When it is disarmed by itself, None for never; and the lease that starts anew when it is renewed, 0 for none.
    expires_ns: int | None = None
    lease_ns: int = 0
    #: How often the point was reached inside the scope, and how often the fault fired.
    hits: int = 0
    fired: int = 0
    #: Hits of each entity, which its draws are numbered by: another entity's hits move none of them.
    entity_hits: dict[str, int] = field(default_factory=dict)
    #: Hits past the filters: what ``fail_nth`` counts, or past the space budget, what ``interval`` counts.
    counted: int = 0

    @property
    def deadline_ns(self) -> int | None:
        """When it is disarmed by itself."""
        return self.expires_ns

    @property
    def gated_out(self) -> bool:
        """Whether this run has the fault armed in vain."""
        if self.gate_ppm >= PPM:
            return False
        return draw_ppm(self.attributes.seed, f"{self.point}#gate", "", 0) >= self.gate_ppm

    def concerns(self, hit: Hit) -> bool:
        """Whether the hit is this fault's business."""
        return (
            self.point == hit.point
            and self.selector.fits(hit)
            and self.window.open(hit.now_ns - self.armed_ns, hit.event - self.armed_event)
            and not self.gated_out
        )

    def should_fail(self, hit: Hit) -> bool:
        """Count a hit that concerns the fault, and decide it. A hit without a size is no allocation."""
        if hit.size_bytes and not self.attributes.alloc_passes(hit.size_bytes):
            return False
        self.hits += 1
        nr = self.entity_hits[hit.entity] = self.entity_hits.get(hit.entity, 0) + 1
        attrs = self.attributes
        stack_first = attrs.should_fail_order != "2.6.20"
        if attrs.fail_nth:
            if stack_first and not attrs.stack_passes(hit.trace):
                return False
            self.counted += 1
            return self.counted == attrs.fail_nth and self._fires()
        if attrs.probability_ppm == 0 or (attrs.task_filter and not hit.make_it_fail) or attrs.times == 0:
            return False
        if stack_first and not attrs.stack_passes(hit.trace):
            return False
        if attrs.space > hit.size_bytes:
            self.attributes = replace(attrs, space=attrs.space - hit.size_bytes)
            return False
        self.counted += 1
        if attrs.interval > 1 and self.counted % attrs.interval:
            return False
        # The draw is the last thing asked for, and the cheapest where it cannot matter.
        if attrs.probability_ppm < PPM and draw_ppm(attrs.seed, self.point, hit.entity, nr) >= attrs.probability_ppm:
            return False
        if not stack_first and not attrs.stack_passes(hit.trace):
            return False
        return self._fires()

    def drawn_action(self, hit: Hit) -> Action:
        """The action for the hit that has just fired: a delay drawn from its range, a hold as long as it is to be."""
        action = self.action
        if isinstance(action, Hold) and action.until_ns:
            return Hold(max(1, action.until_ns - hit.now_ns))
        if not isinstance(action, Delay) or action.min_ns == action.max_ns:
            return action
        drawn_ns = self.draw(hit, "delay", low=action.min_ns, high=action.max_ns)
        return Delay(drawn_ns, drawn_ns)

    def draw(self, hit: Hit, what: str, *, low: int, high: int) -> int:
        """Draw a number in ``low``..``high`` for the hit that has just fired: how late, which bit, by how many."""
        nr = self.entity_hits.get(hit.entity, 0)
        return draw_between(self.attributes.seed, f"{self.point}#{what}", hit.entity, nr, low=low, high=high)

    def _fires(self) -> bool:
        """Use up one of ``times``; one that fail-nth chose fires even if there is none left."""
        if self.attributes.times > 0:
            self.attributes = replace(self.attributes, times=self.attributes.times - 1)
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

    def owned(self, owner: str) -> list[ArmedFault]:
        """The faults of one owner, or of everybody where ``owner`` is empty."""
        return [fault for fault in self.armed.values() if owner in ("", fault.owner)]

    def stands_at(self, point: str) -> bool:
        """Whether any fault is armed at ``point``: where none is, nobody need make a hit."""
        return any(fault.point == point for fault in self.armed.values())

    def hit(self, hit: Hit, *, owner: str = "") -> ArmedFault | None:
        """Tell every fault that the hit concerns; return the first of those that fire, None where none does.

        ``owner`` asks the faults of one owner alone.
        """
        first: ArmedFault | None = None
        for fault in self.armed.values():
            if fault.point != hit.point or owner not in ("", fault.owner) or not fault.concerns(hit):
                continue
            if fault.should_fail(hit) and first is None:
                first = fault
        return first


def errno_of(fault: ArmedFault | None) -> int:
    """The errno that a point fails with; 0 where no fault fired."""
    return fault.action.errno if fault is not None and isinstance(fault.action, FailErrno) else 0
