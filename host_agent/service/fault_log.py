"""What is logged of faults: that they are armed and gone, and each time they fire, as loudly as they say.

``verbose`` 0 is silence about firing, 1 a line, 2 a line with the trace of the hit; at most ``verbose_ratelimit_burst``
lines in ``verbose_ratelimit_interval_ms``, as the kernel has it. Source: lib/fault-inject.c, fail_dump();
lib/ratelimit.c, ___ratelimit().
"""

from __future__ import annotations

import logging
from typing import Final

from fault_lab.injection.hit import Hit
from fault_lab.injection.table import ArmedFault
from host_agent.effects import FaultChanged

_log = logging.getLogger("fpstated.host")
_NS_PER_MS: Final = 1_000_000
_WORDS: Final = {"ARMED": "armed", "DISARMED": "disarmed", "EXPIRED": "disarmed, its lease is over"}


class FaultLog:
    """Says it, and remembers how much it has said of each fault."""

    def __init__(self) -> None:
        #: By fault: when its interval began, and how many lines there were since.
        self._said: dict[str, tuple[int, int]] = {}

    def changed(self, effect: FaultChanged) -> None:
        """Log a change."""
        fault = effect.fault
        if effect.hit is not None:
            self._fired(fault, effect.hit)
            return
        if effect.kind != "ARMED":
            self._said.pop(fault.name, None)
        extra = {"fault": fault.name, "point": fault.point, "owner": fault.owner, "fired": fault.fired}
        _log.info("fault %s at %s %s", fault.name, fault.point, _WORDS[effect.kind], extra=extra)

    def _fired(self, fault: ArmedFault, hit: Hit) -> None:
        attributes = fault.attributes
        if not attributes.verbose or not self._admitted(fault, hit.now_ns):
            return
        trace = f", by {' < '.join(hit.trace)}" if attributes.verbose > 1 else ""
        text = "fault %s fired at %s for %s (hit %d, times %d, space %d)%s"
        left = (attributes.times, attributes.space)
        extra = {"fault": fault.name, "point": fault.point, "entity": hit.entity}
        _log.info(text, fault.name, fault.point, hit.entity or "nobody", fault.hits, *left, trace, extra=extra)

    def _admitted(self, fault: ArmedFault, now_ns: int) -> bool:
        interval_ns = fault.attributes.verbose_ratelimit_interval_ms * _NS_PER_MS
        if not interval_ns:
            return True
        began_ns, lines = self._said.get(fault.name, (now_ns, 0))
        if now_ns >= began_ns + interval_ns:
            began_ns, lines = now_ns, 0
        self._said[fault.name] = (began_ns, lines + 1)
        return lines < fault.attributes.verbose_ratelimit_burst
