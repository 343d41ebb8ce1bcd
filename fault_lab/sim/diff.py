"""Where a live run and the simulated one of the same plan and seed first go different ways.

Times differ, epochs differ, and so does the order between vCPUs. What must not is what each of them did and what came
of it, and which of its hits fired. So a history is taken apart into sequences, of single vCPUs and of those whom a
fault has hit:

    vms/a/vcpus/0      "1 Xsetbv value=0x602e7"  "pending on vms/a/vcpus/0/exits/1"
                       "exit generation 1 open NO_MEMORY" ...
    fault no-memory at vms/a/vcpus/0
                       "fpstate.realloc.alloc, hit 1: FailErrno(errno=12)"

and each is compared with its like. A call that was made again is one event, since its number is the same.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Record = dict[str, Any]
_EVENT: Final = re.compile(r"epoch \d+: (\d+)(?: (.*))?")
#: Which generation of an exit an answer speaks of depends on when it was asked for; the exit's own course does not.
_PENDING: Final = re.compile(r"^(pending on \S+) generation \d+$")
#: Lines of a sequence that are shown before the first one that differs.
CONTEXT: Final = 3
_ENDS: Final = "(it ends here)"


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first difference of one entity: the place in its sequence, from 1, what is there, and what came before."""

    entity: str
    place: int
    live: str
    simulated: str
    before: Sequence[str] = field(default=())

    def text(self) -> str:
        """As `fpstated sim diff` shows it."""
        lines = [f"{self.entity}: step {self.place} differs", *(f"    {line}" for line in self.before)]
        return "\n".join([*lines, f"  live       {self.live}", f"  simulated  {self.simulated}"])


def first_differences(live: Iterable[str], simulated: Iterable[str]) -> list[Divergence]:
    """The first difference of each entity, in the order of the live history; none where all do the same."""
    mine, theirs = sequences(live), sequences(simulated)
    found = (_compared(name, mine.get(name, []), theirs.get(name, [])) for name in dict.fromkeys((*mine, *theirs)))
    return [each for each in found if each is not None]


def _compared(name: str, live: Sequence[str], simulated: Sequence[str]) -> Divergence | None:
    for at in range(max(len(live), len(simulated))):
        one = live[at] if at < len(live) else _ENDS
        other = simulated[at] if at < len(simulated) else _ENDS
        if one != other:
            return Divergence(name, at + 1, one, other, live[max(0, at - CONTEXT) : at])
    return None


def sequences(lines: Iterable[str]) -> dict[str, list[str]]:
    """What each vCPU did and what came of it, and which hits of each fault fired; an entity's own order."""
    reader = _Reader()
    for line in lines:
        reader.take(json.loads(line))
    return {name: found for name, found in reader.sequences().items() if found}


class _Reader:
    """Takes records, and puts what they say where it belongs."""

    def __init__(self) -> None:
        #: Of each vCPU, by the number of its event: what it was, and what came of it, in the order heard of.
        self._events: dict[str, dict[int, list[str]]] = defaultdict(dict)
        self._endings: dict[str, list[str]] = defaultdict(list)
        self._faults: dict[str, list[str]] = defaultdict(list)
        self._asked: dict[int, tuple[str, int]] = {}

    def take(self, record: Record) -> None:
        match record["type"]:
            case "invoke" if record["f"] in ("SubmitEvents", "WaitOutcome"):
                self._invoked(record)
            case "ok" if record["call"] in self._asked:
                vcpu, seq = self._asked.pop(record["call"])
                self._note(vcpu, seq, _PENDING.sub(r"\1", record["value"]))
            case "exit":
                vcpu, _, seq = record["exit"].partition("/exits/")
                rest = [record["exit_cause"], record["decision"] and f"{record['decision']} by {record['by']}"]
                text = f"exit generation {record['generation']} {record['state']}"
                self._note(vcpu, int(seq), " ".join([text, *filter(None, rest)]))
            case "guest" if "vcpu" in record:
                self._endings[record["vcpu"]].append(f"guest round {record['round']}: {record['state']}")
            case "fault":
                said = f"{record['point']}, hit {record['hit']}: {record['action']}"
                self._faults[f"fault {record['fault']} at {record['entity']}"].append(said)
            case _:
                pass

    def _invoked(self, record: Record) -> None:
        found = _EVENT.fullmatch(record["value"])
        if found is None:
            return
        seq = int(found[1])
        self._asked[record["call"]] = record["process"], seq
        if found[2]:
            self._note(record["process"], seq, f"{seq} {found[2]}")

    def _note(self, vcpu: str, seq: int, text: str) -> None:
        """Once: what is asked or told again is no other event."""
        known = self._events[vcpu].setdefault(seq, [])
        if text not in known:
            known.append(text)

    def sequences(self) -> Mapping[str, list[str]]:
        """An exit is heard of beside the calls: what was sent first, then what exits did, then what came of it."""
        made: dict[str, list[str]] = {}
        for vcpu, events in self._events.items():
            made[vcpu] = [line for seq in sorted(events) for line in sorted(events[seq], key=_order)]
        for vcpu, endings in self._endings.items():
            made.setdefault(vcpu, []).extend(endings)
        return made | self._faults


def _order(text: str) -> tuple[int, str]:
    """The event, "pending", the exit's course, the final outcome; exits keep the order of their generations."""
    if text[0].isdigit():
        return 0, ""
    if text.startswith("pending"):
        return 1, text
    if text.startswith("exit"):
        return 2, ""
    return 3, ""
