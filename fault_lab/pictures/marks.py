"""What stands for a record in a picture: a shape, a label beside it; and the title of a run."""

from __future__ import annotations

from fault_lab.pictures.calls import DOWN
from fault_lab.pictures.recording import Record, Recording
from fault_lab.pictures.words import action_words, ms, short


def message_kind(what: str) -> str:
    """How a message's arrow is drawn."""
    if "broken" in what:
        return "broken"
    return "request" if what.endswith("request") else "reply" if what.endswith("reply") else "stream"


def mark(record: Record) -> str:
    """The shape that stands for a record."""
    state = record.text("state")
    match record.type:
        case "node":
            return {"started": "up", "recovered": "up"}.get(state, "down" if state in DOWN else "node")
        case "exit":
            return "settled" if state in {"resolved", "cancelled"} else "exit"
        case "message":
            return "lost" if record.text("lost") else "arrived"
        case kind:
            return kind


def label(record: Record) -> str:
    """What stands beside the mark where there is room; empty for marks that say enough."""
    text = record.text
    match record.type:
        case "exit":
            if text("state") == "open":
                return f"exit {text('exit').rpartition('/')[2]} g{text('generation')} {text('exit_cause')}"
            return f"{text('state')} {text('decision')}".rstrip()
        case "decision":
            return f"{text('kind')} {short(text('exit').rpartition('/exits/')[0])} g{text('generation')}"
        case "fault":
            return f"{text('fault')}: {action_words(text('action'))}"
        case "node" | "guest":
            return text("state")
        case "violation":
            return text("check")
        case _:
            return ""


def title(recording: Recording) -> dict[str, str]:
    """What stands above every picture of a run."""
    head, certificate = recording.head, recording.certificate
    plan = recording.plan
    last = recording.records[-1]
    violation = recording.violation
    verdict = f"violation of {violation.text('check')}" if violation is not None else certificate.get("verdict", "")
    kind = "live run" if recording.live else f"simulated run, rules sim {head.get('sim')}"
    return {
        "name": str(plan.get("name") or "run"),
        "description": str(plan.get("description") or ""),
        "kind": f"{kind}, broken: {head['broken']}" if head.get("broken") else kind,
        "seed": str(head.get("seed", "")),
        "verdict": str(verdict or "unknown"),
        "ends": f"{ms(last.t)} ms",
        "digest": str(certificate.get("history_sha256", "")),
    }
