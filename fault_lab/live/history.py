"""The history of a live run: what many processes have said, put in order, in the form that the simulator writes.

Records come in with the time of the system's monotonic clock, in any order and from any thread. ``lines`` sorts them,
gives calls numbers that no two processes share, and says what each is due to, as far as that can be told from outside:

    ok, fail, info     the call
    decision, exit     what was last known of the exit, else what went wrong at its vCPU
    vcpu               what was last asked of it, or decided about it
    invoke             what the caller heard last
    fault, guest, node nobody's doing, or what the same vCPU or node did last
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from fault_lab.sim.history import History

Record = dict[str, Any]
_CALLS: Final = frozenset({"invoke", "ok", "fail", "info"})


class LiveHistory:
    """What has happened so far. ``on_record`` hears of each record when it comes in, in the thread that brings it."""

    def __init__(self, on_record: Callable[[str, Record], None] = lambda _source, _record: None) -> None:
        self._lock = threading.Lock()
        self._records: list[tuple[int, int, str, Record]] = []
        self._on_record = on_record
        self.start_ns = time.monotonic_ns()

    def __len__(self) -> int:
        return len(self._records)

    def add(self, kind: str, /, **fields: object) -> None:
        """The runner has something to say, now."""
        self.take("", {"t": time.monotonic_ns(), "type": kind, **fields})

    def take(self, source: str, record: Record) -> None:
        """A process has said something; ``source`` tells its calls from those of others, and from its earlier lives."""
        with self._lock:
            self._records.append((record["t"], len(self._records), source, record))
        self._on_record(source, record)

    def close(self) -> History:
        """Put everything in order."""
        with self._lock:
            ordered = sorted(self._records, key=lambda each: each[:2])
        history = History()
        causes = _Causes()
        for t_ns, _, source, record in ordered:
            kind = record["type"]
            fields = {name: value for name, value in record.items() if name not in ("t", "type")}
            if kind in _CALLS:
                fields["call"] = causes.number(source, fields["call"])
            history.cause = causes.of(kind, fields)
            causes.note(kind, fields, history.add(max(0, t_ns - self.start_ns), kind, **fields))
        return history


class _Causes:
    """Numbers of calls, and what was last known of whom."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, int], int] = {}
        self._last: dict[tuple[str, object], int] = {}

    def number(self, source: str, call: int) -> int:
        """The number of a process's call among all."""
        return self._numbers.setdefault((source, call), len(self._numbers) + 1)

    def of(self, kind: str, fields: Record) -> int:
        """The number of the record that led to this one; -1 where nobody can say."""
        match kind:
            case "ok" | "fail" | "info":
                wanted: list[tuple[str, object]] = [("call", fields["call"])]
            case "invoke":
                wanted = [("process", fields["process"])]
            case "exit":
                vcpu = str(fields["exit"]).partition("/exits/")[0]
                wanted = [("decided", fields["exit"]), ("fault", vcpu), ("exit", fields["exit"]), ("process", vcpu)]
            case "decision":
                wanted = [("exit", fields["exit"])]
            case "vcpu":
                wanted = [("asked", fields["vcpu"]), ("decided", fields["vcpu"])]
            case "guest":
                wanted = [("process", fields.get("vcpu", fields["node"]))]
            case "fault":
                wanted = [("process", fields["entity"])]
            case "node":
                wanted = [("fault", fields["node"]), ("node", fields["node"])]
            case _:
                wanted = []
        return max((self._last.get(key, -1) for key in wanted), default=-1)

    def note(self, kind: str, fields: Record, n: int) -> None:
        """Remember a record."""
        match kind:
            case "invoke":
                self._last["call", fields["call"]] = n
                self._last["asked", fields["process"]] = n
                if fields["f"] == "ResolveExit":
                    exit_name = str(fields["value"]).partition(" ")[0]
                    self._last["decided", exit_name] = self._last["decided", exit_name.partition("/exits/")[0]] = n
            case "ok" | "fail" | "info":
                self._last["process", fields["process"]] = n
            case "exit" | "decision":
                self._last[kind, fields["exit"]] = n
                if kind == "decision":
                    self._last["process", fields["node"]] = n
            case "fault":
                self._last["fault", fields["entity"]] = n
            case "node":
                self._last["node", fields["node"]] = n
                self._last["process", fields["node"]] = n
            case _:
                pass
