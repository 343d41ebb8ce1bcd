"""A recorded run as a file: what it was made from, its history line by line, and its certificate.

    {"sim": 3, "rules": 2, "version": "0.1.0", "seed": 7, "plan_sha256": "...", "plan": {...}}
    {"n": 0, "t": 0, ..., "chain": "..."}
    ...
    {"certificate": {...}}

A replay runs the plan again and compares record by record. It refuses a file of other rules: what differs then says
nothing. The file of a live run has ``"live": true`` in its head; no replay leads there again. That of a broken version
(``fault_lab.broken``) has its name, and only that version leads there again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fpstate.fault.v1 import plan_pb2
from google.protobuf import json_format

from fault_lab.broken.versions import what_is_broken
from fault_lab.plan.canonical import canonical_json, plan_hash
from fault_lab.plan.check import problems
from fault_lab.sim.history import chained, first_divergence
from fault_lab.sim.run import SIM_VERSION, RunResult, simulate
from fpstated._version import __version__
from host_agent.journal.record import RULES_VERSION


class RecordError(ValueError):
    """A file that is no recorded run, or not one of this release. The text names the line where there is one."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A file that was read."""

    plan: plan_pb2.Plan
    seed: int
    lines: Sequence[str]
    live: bool = False
    broken: str = ""

    def check_version(self) -> None:
        """The version that runs here must be the one that was recorded. Raises ``RecordError``."""
        here = what_is_broken()
        if self.broken != here:
            was = f"with --broken {self.broken}" if self.broken else "without --broken"
            raise RecordError(f"it was recorded {was}: expected the same here, got {here or 'nothing broken'}")


@dataclass(frozen=True, slots=True)
class Replayed:
    """A run again. ``divergence`` is the number of the first record that differs; ``was`` and ``now`` are both."""

    result: RunResult
    divergence: int | None
    was: str = ""
    now: str = ""


def record_lines(plan: plan_pb2.Plan, result: RunResult, *, live: bool = False) -> Iterator[str]:
    """The lines of the file, without line feeds. ``live``: of real processes, which no replay leads to again."""
    head: dict[str, object] = {"live": True} if live else {}
    head |= {"broken": result.broken} if result.broken else {}
    head |= {"sim": SIM_VERSION, "rules": RULES_VERSION, "version": __version__, "seed": result.seed}
    yield json.dumps({**head, "plan_sha256": result.plan_hash, "plan": json.loads(canonical_json(plan))})
    yield from chained(result.lines)
    yield json.dumps({"certificate": result.certificate})


def read_record(text: str) -> Recorded:
    """Read a file. Raises ``RecordError``."""
    lines = text.splitlines()
    head = _object(lines[0] if lines else "", 1)
    for name, mine in (("sim", SIM_VERSION), ("rules", RULES_VERSION)):
        if head.get(name) != mine:
            raise RecordError(f"line 1: {name}: expected {mine}, the rules of this release, got {head.get(name)!r}")
    try:
        plan = json_format.ParseDict(head["plan"], plan_pb2.Plan())
        seed = int(head["seed"])
    except (KeyError, TypeError, ValueError, json_format.ParseError) as error:
        raise RecordError(f"line 1: expected a plan and a seed: {error}") from error
    if plan_hash(plan) != head.get("plan_sha256"):
        raise RecordError("line 1: plan_sha256: expected the hash of the plan beside it")
    found = problems(plan)
    if found:
        raise RecordError(f"line 1: plan: {found[0].text('plan')}")
    if not lines[-1].startswith('{"certificate"'):
        raise RecordError(f"line {len(lines)}: expected the certificate, which ends a file: this one was cut off")
    body = [line for line in lines[1:] if not line.startswith('{"certificate"')]
    plain = [line.rpartition(',"chain":')[0] + "}" for line in body]
    for number, (line, right) in enumerate(zip(body, chained(plain), strict=True), 2):
        if line != right:
            raise RecordError(f"line {number}: its chain does not fit the lines before")
    return Recorded(plan, seed, plain, live=head.get("live") is True, broken=str(head.get("broken", "")))


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise RecordError(f"line {number}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RecordError(f"line {number}: expected an object")
    return found


def replay(recorded: Recorded) -> Replayed:
    """Run it again and say where it first goes another way. Raises ``RecordError`` where another version runs here."""
    recorded.check_version()
    result = simulate(recorded.plan, recorded.seed)
    lines = list(result.lines)
    n = first_divergence(list(recorded.lines), lines)
    if n is None:
        return Replayed(result, None)
    ends = "(it ends here)"
    was = recorded.lines[n] if n < len(recorded.lines) else ends
    return Replayed(result, n, was, lines[n] if n < len(lines) else ends)
