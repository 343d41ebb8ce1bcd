"""What one client was told by the host, and what it has asked for: held by the parent, whatever becomes of the client.

A client writes a line before it asks and a line after it was answered; the pipe keeps them when it is killed. So the
truth lies between the two: what was answered is there, and what is there was asked for.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Ask:
    """A call with a request id: ``op`` is make, drop or bump, of a thing of a kind with a name."""

    id: str
    op: str
    kind: str
    name: str


@dataclass
class Thing:
    """A VM or an armed fault: ``answer`` is its uid or name once that was told; ``settled`` while nothing is asked."""

    answer: str = ""
    settled: bool = False


@dataclass
class Record:
    """The lines of one client, and of those that came after it under its name, summed up."""

    name: str
    #: By vCPU: the last event that was sent, the last one whose outcome was received, with all before it, and the last
    #: one that was acknowledged, which may have been on its way before its outcome was.
    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    acked: dict[str, int] = field(default_factory=dict)
    #: By (kind, name): what is there, or may be.
    things: dict[tuple[str, str], Thing] = field(default_factory=dict)
    #: By VM: how often it was reset, as asked and as answered.
    bumps_asked: dict[str, int] = field(default_factory=dict)
    bumps_done: dict[str, int] = field(default_factory=dict)
    #: By request id: what was asked and not answered.
    open: dict[str, Ask] = field(default_factory=dict)
    asks: int = 0
    #: Generations of decisions that are on their way, by exit, and (exit, generation) of those the host has taken.
    deciding: dict[str, int] = field(default_factory=dict)
    decided: set[tuple[str, int]] = field(default_factory=set)
    #: What the client itself has found wrong.
    bad: list[tuple[str, str]] = field(default_factory=list)
    #: How often each reason was heard for which a host is away for a moment.
    away: Counter[str] = field(default_factory=Counter)
    #: Guests that ran to their end and found everything as they had left it.
    verified: int = 0
    #: How often a controller has found the host, and the exits there are.
    watched: int = 0
    acknowledged: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, line: dict[str, Any]) -> None:
        """Fold one line in."""
        with self.lock:
            self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        match line:
            case {"sent": vcpu, "seq": seq}:
                self.sent[vcpu] = max(seq, self.sent.get(vcpu, 0))
            case {"received": vcpu, "seq": seq}:
                self.received[vcpu] = seq
            case {"acked": vcpu, "seq": seq}:
                self.acknowledged += max(0, seq - self.acked.get(vcpu, 0))
                self.acked[vcpu] = max(seq, self.acked.get(vcpu, 0))
            case {"ask": request_id, "op": op, "kind": kind, "name": name}:
                self._asked(Ask(request_id, op, kind, name))
            case {"did": request_id, "answer": answer}:
                self._did(self.open.pop(request_id), answer)
            case {"event": event, "exit": name}:
                self._told(event, name, line["generation"])
            case _:
                self._noted(line)

    def _told(self, event: str, exit_name: str, generation: int) -> None:
        """A controller's line about an exit: the generation is that of the exit, after a result the next one."""
        if event == "decision":
            self.deciding[exit_name] = generation
        elif event == "result":
            self.acknowledged += 1
            self.decided.add((exit_name, self.deciding.pop(exit_name)))
        elif event in ("refused", "left"):
            self.deciding.pop(exit_name, None)

    def _noted(self, line: dict[str, Any]) -> None:
        if "bad" in line:
            self.bad.append((line["bad"], line["text"]))
        self.away.update([line["away"]] if "away" in line else [])
        self.verified += "verified" in line
        self.watched += line.get("event") == "watching"

    def _asked(self, ask: Ask) -> None:
        if ask.id in self.open:
            return  # asked again, by the client that came after
        self.asks += 1
        self.open[ask.id] = ask
        if ask.op == "bump":
            self.bumps_asked[ask.name] = self.bumps_asked.get(ask.name, 0) + 1
        else:
            self.things.setdefault((ask.kind, ask.name), Thing()).settled = False

    def _did(self, ask: Ask, answer: str) -> None:
        self.acknowledged += 1
        if ask.op == "bump":
            self.bumps_done[ask.name] = self.bumps_done.get(ask.name, 0) + 1
        elif ask.op == "make":
            self.things[ask.kind, ask.name] = Thing(answer, settled=True)
        else:
            del self.things[ask.kind, ask.name]
            for vcpu in [vcpu for vcpu in self.acked if vcpu.startswith(f"vms/{ask.name}/")]:
                del self.acked[vcpu]

    @property
    def in_flight(self) -> bool:
        """Whether something is under way whose answer is not here yet."""
        with self.lock:
            events = any(self.sent.get(vcpu, 0) > seq for vcpu, seq in self.acked.items())
            return events or bool(self.deciding) or bool(self.open)

    def came_back(self) -> None:
        """Its process is another one: what a controller had on its way is not known to the next."""
        with self.lock:
            self.deciding.clear()

    def start_line(self, **more: object) -> dict[str, object]:
        """What the next client of this name has to know."""
        with self.lock:
            return {
                "name": self.name,
                "sent": self.sent,
                "received": self.received,
                "asks": self.asks,
                "open": [[ask.id, ask.op, ask.kind, ask.name] for ask in self.open.values()],
                "things": [[kind, name, thing.answer] for (kind, name), thing in self.things.items()],
                **more,
            }
