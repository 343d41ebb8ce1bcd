"""A violation for a person: the operations that no order explains, and the states that were possible before the last.

vms/a/vcpus/0: no order explains 3 operations up to record 31
  possible before it: here, 1 events, xcr0=0x602e7 xfd=0x0 xfd_err=0x0
       17..26     vms/a/vcpus/0        XSETBV ...
  *    28..31     eyes/0               GetVcpu ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fault_lab.linear.checker import Operation, Verdict
from fault_lab.linear.state import Heard
from fault_lab.linear.what import Create, Decide, Event, Gone, Kill, Look, LookAt, Reset, Set, Shrink, Wait

#: Operations and states that are shown; the prefix may be long, and its end says most.
_SHOWN: Final = 12
_STATES: Final = 5


def shown(vcpu: str, verdict: Verdict) -> str:
    """A violation of one vCPU, line by line."""
    found = verdict.counterexample
    if found is None:
        return f"{vcpu}: no order explains its {verdict.operations} operations"
    last = found.last
    head = f"{vcpu}: no order explains {len(found.prefix)} operations up to record {_record(last.ret)}"
    states = [f"  possible before it: {state}" for state in found.states[:_STATES]]
    if len(found.states) > _STATES:
        states.append(f"  and {len(found.states) - _STATES} states more")
    return "\n".join([head, *states, *_lines(found.prefix, last)])


def _lines(prefix: Sequence[Operation], last: Operation) -> list[str]:
    """The end of the prefix, by the order of calls; what was open when the last one returned has no end here."""
    cut = last.ret or 0
    lines = [f"  ({len(prefix) - _SHOWN} before)"] if len(prefix) > _SHOWN else []
    for each in prefix[-_SHOWN:]:
        over = each.ret is not None and each.ret <= cut
        interval = f"{_record(each.call)}..{_record(each.ret) if over else ''}"
        mark = "*" if each is last else " "
        lines.append(f"  {mark} {interval:<12} {each.process:<18} {told(each.what, answered=over)}")
    return lines


def _record(point: int | None) -> str:
    """The record that a point of an operation is of: ``operations`` counts twice."""
    return "" if point is None else str(point // 2)


def told(what: Any, *, answered: bool = True) -> str:  # noqa: ANN401 -- any operation of the model
    """An operation in a few words, with its answer where it has one."""
    match what:
        case Event(seq=seq, kind=kind, operands=operands, heard=heard):
            numbers = " ".join(f"{name}={value:#x}" for name, value in operands)
            return f"event {seq} {kind} {numbers}".strip() + _answer(heard if answered else None)
        case Wait(seq=seq, heard=heard):
            return f"outcome of event {seq}" + _answer(heard if answered else None)
        case Decide(seq=seq, generation=generation, decision=decision, left=left):
            return f"{decision} for event {seq} generation {generation}" + (f" -> {left}" if left and answered else "")
        case Look(state=state, seq=seq, xcr0=xcr0, xfd=xfd, xfd_err=xfd_err, size=size):
            registers = f"xcr0={xcr0:#x} xfd={xfd:#x} xfd_err={xfd_err:#x}"
            return "GetVcpu" + (f" -> {state}, {seq} events, {registers}, {size} bytes" if answered else "")
        case LookAt(read=read):
            return "read" + (f" -> {_numbers(read)}" if answered else "")
        case Set(written=written):
            return f"set {_numbers(written)}"
        case Create() | Gone() | Reset() | Kill() | Shrink():
            return _PLAIN[type(what)]
        case _:
            return str(what)


_PLAIN: Final[dict[type, str]] = {
    Create: "CreateVcpu",
    Gone: "the vCPU is gone",
    Reset: "RESET",
    Kill: "the VM is killed",
    Shrink: "RECLAIM from this vCPU",
}


def _numbers(pairs: tuple[tuple[str, int], ...]) -> str:
    return " ".join(f"{name}={value:#x}" for name, value in pairs)


def _answer(heard: Heard | None) -> str:
    if heard is None:
        return ""
    value = "" if heard.value is None else f" {heard.value:#x}"
    grown = f", grown to {heard.grown} bytes" if heard.grown > 0 else ""
    return f" -> {heard.tag}{value}{grown}"
