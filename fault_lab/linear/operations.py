"""The operations of each vCPU out of the records of a history: a call, sent again or not, becomes one or two of them.

A unary call that was sent again with its request id, and an event with its number, is one operation: from the first
invoke to the last completion. Where no attempt has a certain end it stays open; where each has failed it was none.
An event whose answer is only known from a later attempt is two: it took effect, and then somebody heard.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from fault_lab.linear.checker import Operation
from fault_lab.linear.state import Heard
from fault_lab.linear.vcpu import VcpuModel
from fault_lab.linear.what import (
    Create,
    Decide,
    Event,
    Gone,
    Kill,
    Look,
    LookAt,
    Reset,
    Set,
    Shrink,
    Wait,
    What,
)

Record = dict[str, Any]

_VECTORS: Final = {6: "#UD", 7: "#NM", 13: "#GP", 14: "#PF"}
_READS: Final = frozenset({"GetVcpu", "GetXcrs", "GetMsrs", "GetXsave", "WaitOutcome"})
#: What a decision about one vCPU is for another.
_TO_OTHERS: Final[dict[str, What]] = {"KILL_VM": Kill(), "RESET_VM": Reset(), "RECLAIM": Shrink()}
_ENDS: Final = frozenset({"ok", "fail", "info"})


class HistoryError(ValueError):
    """A record that is none, or lacks what a check reads."""


@dataclass(slots=True)
class VcpuHistory:
    """What happened on one vCPU. ``unmodelled`` says what the model does not have; empty where it has everything."""

    vcpu: str
    operations: list[Operation] = field(default_factory=list)
    supported: set[int] = field(default_factory=set)
    unmodelled: str = ""

    @property
    def model(self) -> VcpuModel:
        """The rules for it: what its CPUID allows is known where everybody who looked saw the same."""
        return VcpuModel(next(iter(self.supported)) if len(self.supported) == 1 else None)


@dataclass(slots=True)
class _Call:
    """One call with all its attempts, of which ``maybe`` have not failed for certain; ``result`` is what was heard."""

    f: str
    op: Record
    process: str
    first: int
    attempts: int = 0
    last: int | None = None
    result: Record | None = None
    maybe: int = 0


def records_of(lines: Iterable[str]) -> Iterator[Record]:
    """The records of lines that a check reads; the head and the certificate of a file are none."""
    for number, line in enumerate(lines, 1):
        if '"op":' not in line and ('"call":' not in line or '"type":"message"' in line):
            continue  # most lines are messages, and say nothing of what was done
        try:
            record = json.loads(line)
        except ValueError as error:
            raise HistoryError(f"line {number}: not JSON: {error}") from error
        if isinstance(record, dict) and "type" in record:
            yield record


def histories(records: Iterable[Record]) -> dict[str, VcpuHistory]:
    """Sort what happened by vCPU. Raises ``HistoryError``."""
    found: dict[str, VcpuHistory] = {}
    try:
        calls = _calls(records, found)
        named = [call.op.get("vcpu", "") for call in calls]
        for vcpu in dict.fromkeys(name for name in named if name):
            found.setdefault(vcpu, VcpuHistory(vcpu))
        for call in calls:
            for vcpu in _whom(call, found):
                _add(found[vcpu], call)
    except (KeyError, TypeError, IndexError) as error:
        raise HistoryError(f"an operation lacks what a check reads: {error!r}") from error
    return dict(sorted(found.items(), key=lambda pair: _in_order(pair[0])))


def _in_order(vcpu: str) -> tuple[str, int]:
    name, _, index = vcpu.rpartition("/")
    return name, int(index) if index.isdigit() else 0


# -- calls -------------------------------------------------------------------------------------------------------------


def _calls(records: Iterable[Record], found: dict[str, VcpuHistory]) -> list[_Call]:
    """Every call with its attempts. What a host forgot is put where it belongs at once."""
    calls: list[_Call] = []
    under_way: dict[object, _Call] = {}
    repeated: dict[object, _Call] = {}
    for record in records:
        kind = record["type"]
        if kind == "invoke" and "op" in record:
            call = _begun(record, repeated)
            if call.attempts == 1:
                calls.append(call)
            under_way[record["call"]] = call
        elif kind in _ENDS and (ended := under_way.pop(record["call"], None)) is not None:
            _ended(ended, record)
        elif kind == "node" and "op" in record:
            repeated.clear()
            for vcpu in record["op"]["vcpus"]:
                history = found.setdefault(vcpu, VcpuHistory(vcpu))
                history.operations.append(Operation(2 * record["n"], 2 * record["n"] + 1, Gone()))
    return calls


def _begun(record: Record, repeated: dict[object, _Call]) -> _Call:
    """A call, or one more attempt at one that has no certain end yet."""
    op, f = record["op"], record["f"]
    call = _Call(f, op, record["process"], record["n"])
    key = _identity(f, op)
    if key is not None:
        earlier = repeated.setdefault(key, call)
        if earlier.result is None:
            call = earlier
        elif f == "SubmitEvents" and earlier.result["outcome"] not in ("rejected", "blocked"):
            call.f = "WaitOutcome"  # its outcome is asked for once more
        else:
            repeated[key] = call
    call.attempts += 1
    call.maybe += 1
    return call


def _identity(f: str, op: Record) -> object:
    """What makes two calls the same: the event with its number, the request id; None where nothing does."""
    if f == "SubmitEvents":
        return tuple(op.items())
    return (f, op["request"]) if op.get("request") else None


def _ended(call: _Call, record: Record) -> None:
    match record["type"]:
        case "ok" if (record.get("result") or {}).get("directive") == "MOVED":
            pass  # no outcome: it goes on where its VM is
        case "ok":
            call.result, call.last = record.get("result") or {}, record["n"]
        case "fail":
            call.maybe -= 1


def _whom(call: _Call, found: dict[str, VcpuHistory]) -> list[str]:
    """The vCPUs that a call is about: one, or all of a VM, or with a RECLAIM everybody."""
    decision = call.op.get("decision", "")
    if decision == "RECLAIM":
        return list(found)
    vm = call.op.get("vm", "")
    if decision in ("KILL_VM", "RESET_VM", "HIDE_FEATURE"):
        vm = call.op["vcpu"].partition("/vcpus/")[0]
    if vm:
        return [vcpu for vcpu in found if vcpu.startswith(f"{vm}/vcpus/")]
    return [call.op["vcpu"]]


# -- operations --------------------------------------------------------------------------------------------------------


def _add(history: VcpuHistory, call: _Call) -> None:
    """Put a call into the history of a vCPU."""
    refused = call.f == "SubmitEvents" and call.result is not None and call.result["outcome"] in ("rejected", "blocked")
    if refused and call.attempts > 1:
        call.result = call.last = None  # a later attempt was refused, which says nothing about those before
    elif (refused and not _taken(call.result)) or (call.result is None and (not call.maybe or call.f in _READS)):
        return  # nothing happened, or nobody knows what was read
    made = _OPERATIONS.get(call.f)
    if made is None:
        history.unmodelled = history.unmodelled or f"{call.f} is not in the model"
        return
    if call.f in ("CreateVcpu", "GetVcpu") and call.result:
        history.supported.add(call.result["supported_xcr0"])
    if call.result and call.result.get("state") == "BROKEN":
        history.unmodelled = history.unmodelled or "the vCPU met a bug of its host"
    # Twice the number, so that there is room behind the first half of an event that is two.
    ret = None if call.last is None else 2 * call.last
    for nr, what in enumerate(made(history, call)):
        end = None if ret is None else ret + nr
        history.operations.append(Operation(2 * call.first + nr, end, what, call.f in _READS, call.process))


def _event(_history: VcpuHistory, call: _Call) -> Iterator[What]:
    op = call.op
    operands = tuple((name, value) for name, value in op.items() if name not in ("vcpu", "seq", "event"))
    heard = _heard(call.result) if call.result is not None else None
    if heard is None or (call.attempts == 1 and heard.tag != "gone"):
        yield Event(op["seq"], op["event"], operands, heard)
    else:
        yield Event(op["seq"], op["event"], operands, None)
        yield Wait(op["seq"], heard)


def _taken(result: Record | None) -> bool:
    """Whether the event's number is used up, which a rejected or blocked one's may not be."""
    return result is not None and result["outcome"] != "blocked" and bool(result.get("taken", True))


def _heard(result: Record) -> Heard:
    match result["outcome"]:
        case "done":
            return Heard("done", result.get("value"), result["grown"][1] if "grown" in result else 0)
        case "inject":
            tag = _VECTORS[result["vector"]]
            return Heard(tag, result["xfd_err"] if tag == "#NM" else None)
        case "pending":
            return Heard("pending", result["generation"])
        case tag:
            return Heard(tag)


def _wait(_history: VcpuHistory, call: _Call) -> Iterator[What]:
    assert call.result is not None, "what was not heard is no operation"
    yield Wait(call.op["seq"], _heard(call.result))


def _decide(history: VcpuHistory, call: _Call) -> Iterator[What]:
    op = call.op
    decision = op["decision"]
    if decision == "HIDE_FEATURE":
        history.supported |= {0, 1}  # the VM's next RESET changes what its CPUID allows
    if decision == "MIGRATE":
        history.unmodelled = history.unmodelled or "MIGRATE is not in the model"
    elif op["vcpu"] == history.vcpu:
        # Who asks again hears how the exit is by then.
        left = call.result.get("state") if call.result is not None and call.attempts == 1 else None
        yield Decide(op["seq"], op["generation"], decision, left)
    elif decision != "HIDE_FEATURE":
        yield _TO_OTHERS[decision]


def _look(_history: VcpuHistory, call: _Call) -> Iterator[What]:
    seen = call.result
    assert seen is not None, "what was not heard is no operation"
    yield Look(
        seen["state"],
        seen["next_seq"] - 1,
        seen["xcr0"],
        seen["xfd"],
        seen["xfd_err"],
        seen["xfeatures"],
        seen["size"],
    )


def _look_at(_history: VcpuHistory, call: _Call) -> Iterator[What]:
    yield LookAt(_registers(call.result or {}))


def _set(_history: VcpuHistory, call: _Call) -> Iterator[What]:
    grown = (call.result or {}).get("grown") or [0, 0]
    yield Set(_registers(call.op), grown[1])


def _registers(said: Record) -> tuple[tuple[str, int], ...]:
    """What was read or written of what the model has."""
    return tuple((name, said[name]) for name in ("xcr0", "xfd", "xfd_err", "xstate_bv") if name in said)


def _once(what: What) -> Callable[[VcpuHistory, _Call], Iterator[What]]:
    return lambda _history, _call: iter((what,))


_OPERATIONS: Final[dict[str, Callable[[VcpuHistory, _Call], Iterator[What]]]] = {
    "SubmitEvents": _event,
    "WaitOutcome": _wait,
    "ResolveExit": _decide,
    "CreateVcpu": _once(Create()),
    "DeleteVcpu": _once(Gone()),
    "ResetVm": _once(Reset()),
    "GetVcpu": _look,
    "GetXcrs": _look_at,
    "GetMsrs": _look_at,
    "GetXsave": _look_at,
    "SetXcrs": _set,
    "SetMsrs": _set,
    "SetXsave": _set,
}
