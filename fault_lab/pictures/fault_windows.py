"""When a fault of a plan could fire: its window of time, as far as its phases go, of those faults that did fire.

A window that never closes is as good as none: what is shaded to the end tells nothing apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

from fault_lab.pictures.recording import Recording

_NS: Final = 10**9
_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)s")


def fault_windows(recording: Recording) -> Iterator[tuple[str, int, int]]:
    """Yield name, begin and end in virtual nanoseconds; nothing for a fault whose window never closes."""
    fired = {record.text("fault") for record in recording.records if record.type == "fault"}
    faults = recording.plan.get("faults")
    for fault in faults if isinstance(faults, list) else ():
        window = fault.get("window") if isinstance(fault, dict) else None
        if isinstance(window, dict) and fault.get("name") in fired:
            after, until = _ns(window.get("after")), _ns(window.get("until"))
            if until is not None:
                yield from _in_phases(recording, fault, after or 0, until)


def _in_phases(
    recording: Recording, fault: Mapping[str, Any], after: int, until: int
) -> Iterator[tuple[str, int, int]]:
    names = fault.get("phases")
    wanted = {str(each).removeprefix("PHASE_NAME_").lower() for each in names} if isinstance(names, list) else {"chaos"}
    phases = [record for record in recording.records if record.type == "phase"]
    ends = [*(record.t for record in phases[1:]), recording.records[-1].t]
    for phase, over in zip(phases, ends, strict=True) if phases else ():
        begin, end = max(after, phase.t), min(until, over)
        if phase.text("phase") in wanted and begin < end:
            yield str(fault["name"]), begin, end


def _ns(text: object) -> int | None:
    """A duration as protobuf's JSON has it."""
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    return int(Decimal(found[1]) * _NS) if found is not None else None
