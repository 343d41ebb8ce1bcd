"""One timeline out of what several processes say, in lanes as in the founding mail: H host, G guest, U userspace.

Every process writes JSON lines, stamped with CLOCK_MONOTONIC, which all processes of a machine share:

    {"t": 81234567890, "lane": "G", "vcpu": "vms/a/vcpus/0", "text": "WRMSR XFD=0", "tone": "event"}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.text import Text

LANES = ("H", "G", "U")

#: Colours of the lanes, and of what stands out in them. Chosen to be told apart without colour, too: by lane and words.
_LANE_STYLES = {"H": "cyan", "G": "yellow", "U": "magenta"}
_TONE_STYLES = {"growth": "green", "failure": "bold red", "exit": "red", "event": "bold", "decision": "bold magenta"}


@dataclass(frozen=True, slots=True, order=True)
class TimelineLine:
    """One line. ``t_ns`` is CLOCK_MONOTONIC; ``vcpu`` is a resource name or empty."""

    t_ns: int
    lane: str
    vcpu: str
    text: str
    tone: str = "plain"

    def to_json(self) -> str:
        """The line as a process writes it."""
        record = {"t": self.t_ns, "lane": self.lane, "vcpu": self.vcpu, "text": self.text, "tone": self.tone}
        return json.dumps(record, separators=(",", ":"))


def parse_line(raw: str) -> TimelineLine | None:
    """Read one line of a process; None for anything that is not a line of a timeline."""
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("lane") not in LANES or not isinstance(record.get("t"), int):
        return None
    return TimelineLine(
        record["t"],
        record["lane"],
        str(record.get("vcpu", "")),
        str(record.get("text", "")),
        str(record.get("tone", "plain")),
    )


def render(lines: Iterable[TimelineLine], *, start_ns: int) -> Iterator[Text]:
    """Yield a styled line each: milliseconds since ``start_ns``, lane, vCPU, text."""
    for line in lines:
        text = Text()
        text.append(f"{(line.t_ns - start_ns) / 1e6:9.1f} ms  ", style="dim")
        text.append(f"{line.lane}  ", style=_LANE_STYLES.get(line.lane, ""))
        text.append(f"{short_name(line.vcpu):8}", style="dim")
        text.append(line.text, style=_TONE_STYLES.get(line.tone, ""))
        yield text


def parse_any(raw: str, *, wall_offset_ns: int) -> TimelineLine | None:
    """Read one line of any of our processes: a line of a timeline, or an event of a controller, which is lane U.

    ``wall_offset_ns`` is the system's clock, which a controller's events carry, minus CLOCK_MONOTONIC.
    """
    line = parse_line(raw)
    if line is not None:
        return line
    try:
        event = json.loads(raw)
        return _controller_line(event, wall_offset_ns) if isinstance(event, dict) else None
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None  # no event of ours, whatever it looks like


def _controller_line(event: Mapping[str, Any], wall_offset_ns: int) -> TimelineLine | None:
    """What a controller says of itself (vmm_controller/timeline.py); None for what says nothing new."""
    said = _controller_text(event)
    if said is None:
        return None
    text, tone = said
    t_ns = round(float(event.get("time_s", 0)) * 1e9) - wall_offset_ns
    return TimelineLine(t_ns, "U", str(event.get("vcpu", "")), text, tone)


def _controller_text(event: Mapping[str, Any]) -> tuple[str, str] | None:
    match event.get("event"):
        case "control":
            return f"control of {event['scope'] or 'the host'}: {event['what']}", "plain"
        case "watching":
            return f"watching; {event['open']} exits are open", "plain"
        case "disconnected":
            return f"no host ({event['code']}); next try in {event['delay_s']:.1f} s", "failure"
        case "exit" if event["state"] == "OPEN":
            why = (
                f"{event['errno_name']} {event['cause']}, needs {event['bytes_needed']:,} B, attempt {event['attempt']}"
            )
            return f"exit: {why}", "exit"
        case "decision":
            delay = f" {event['delay_s'] * 1000:.0f} ms" if "delay_s" in event else ""
            which = f"attempt {event['attempt']}, generation {event['generation']}"
            return f"decide {event['decision']}{delay}   ({which})", "decision"
        case "exit" if event["state"] in ("RESOLVED", "CANCELLED"):
            return f"{event['state'].lower()}: {event['result']} at attempt {event['attempt']}", "growth"
        case "refused":
            return f"{event['decision']} refused: {event['reason']}: {event['message']}", "failure"
        case "left":
            return f"left to the deadline: {event['why']}", "exit"
        case _:
            return None


def short_name(name: str) -> str:
    """``vms/a/vcpus/0`` as ``a/0``; ``vms/a`` as ``a``; anything else as it is."""
    parts = name.split("/")
    if len(parts) >= 4 and parts[0] == "vms" and parts[2] == "vcpus":
        return f"{parts[1]}/{parts[3]}"
    return parts[1] if len(parts) == 2 and parts[0] == "vms" else name
