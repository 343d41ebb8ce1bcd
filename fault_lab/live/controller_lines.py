"""What `fpstated controller --timeline` says, as records of a history: its calls, its decisions, what it has lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final

from fault_lab.linear.form import decision_op
from fault_lab.live.history import Record

_INFO: Final = frozenset({"DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED", "UNKNOWN"})


class ControllerLines:
    """The lines of one process. Its clock is the wall's: ``offset_ns`` brings it to the monotonic one."""

    def __init__(self, node: str, life: int) -> None:
        self._node = node
        self._source = f"{node}/{life}"
        self._calls = 0
        self._open: dict[tuple[str, int, str], list[int]] = {}
        self._epoch = 0
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        #: Since when it may be asking for control: when its call began is not said.
        self._asks_since_ns = time.monotonic_ns()

    def records(self, line: str) -> Iterator[Record]:
        """Yield what a line says; nothing for one that says nothing of a history."""
        try:
            event = json.loads(line)
        except ValueError:
            return
        t_ns = round(event["time_s"] * 1e6) * 1000 - self._offset_ns
        for kind, fields in self._of(event):
            asked = kind == "invoke" and fields["f"] == "AcquireControl"
            yield {"t": min(self._asks_since_ns, t_ns) if asked else t_ns, "type": kind, **fields}
        if event["event"] == "control":
            self._asks_since_ns = t_ns

    def _of(self, event: dict[str, Any]) -> Iterator[tuple[str, dict[str, object]]]:
        node = self._node
        match event["event"]:
            case "control" if event["what"] == "acquired":
                self._calls += 1
                self._epoch = event["epoch"]
                call: dict[str, object] = {"process": node, "f": "AcquireControl", "call": self._calls}
                yield "invoke", call | {"value": "AcquireControl"}
                yield "ok", call | {"value": f"epoch {event['epoch']}"}
            case "control" if event["what"] == "lost":
                yield "node", {"node": node, "state": "lost control"}
            case "decision":
                name, generation, kind = event["exit"], event["generation"], event["decision"]
                yield "decision", {"node": node, "exit": name, "generation": generation, "kind": kind}
                self._calls += 1
                self._open.setdefault((name, generation, kind), []).append(self._calls)
                said = {"value": f"{name} generation {generation} epoch {self._epoch}: {kind}"}
                # What is sent again is one call here, so that no two have one request id.
                op = decision_op(name, generation, kind, f"{self._source}/{self._calls}")
                yield "invoke", self._call(self._calls) | said | {"op": op}
            case "result" | "refused":
                yield from self._answered(event)
            case _:
                pass

    def _answered(self, event: dict[str, Any]) -> Iterator[tuple[str, dict[str, object]]]:
        """The reply to a decision: the exit after it, or why not."""
        name, kind = event["exit"], event.get("last_decision") or event.get("decision")
        # The exit after a decision may be of the next generation: what was asked first is answered.
        found = next((key for key in self._open if key[0] == name and kind in ("", key[2])), None)
        if event["event"] == "refused":
            about = name, event["generation"], event["decision"]
            found = about if about in self._open else None
        if found is None:
            return
        call = self._call(self._open[found].pop(0))
        if not self._open[found]:
            del self._open[found]
        if event["event"] == "result":
            # How the exit is by then: whether it was asked again after a lost reply, nobody says.
            yield "ok", call | {"value": f"{name} generation {event['generation']} {event['state']}"}
        else:
            yield "info" if event["reason"] in _INFO else "fail", call | {"value": event["reason"]}

    def _call(self, number: int) -> dict[str, object]:
        return {"process": self._node, "f": "ResolveExit", "call": number}
