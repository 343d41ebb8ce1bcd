"""What a record says of an operation for a check to read: ``op`` where a call begins, ``result`` where it has ended.

Made of the values and messages that a simulated run and a live one both have. docs/linearizability.md is the contract.
"""

from __future__ import annotations

from typing import Any, Final

from fpstate.v1 import vcpu_pb2

from guest_agent.outcome import Blocked, Done, Gone, Injected, Outcome, Pending, Rejected

Said = dict[str, Any]

#: Operands of events that a check reads; bytes are none of them.
_OPERANDS: Final = ("msr", "value", "index", "cpl", "cr0_ts", "xfd", "feature")


def event_op(vcpu: str, seq: int, event: object) -> Said:
    """An event with its number: a guest's own value or the host's, whose names are the same."""
    operands = {name: int(got) for name in _OPERANDS if isinstance(got := getattr(event, name, None), int)}
    return {"vcpu": vcpu, "seq": seq, "event": type(event).__name__, **operands}


def outcome_result(outcome: Outcome, *, taken: bool = True) -> Said:
    """What an event came to. ``taken``: its number is used up."""
    match outcome:
        case Done(value=value, reallocated=growth):
            grown = {"grown": [growth.old_bytes, growth.new_bytes]} if growth is not None else {}
            return {"outcome": "done", **({} if value is None else {"value": value}), **grown}
        case Injected(vector=vector, xfd_err=xfd_err):
            return {"outcome": "inject", "vector": vector, "xfd_err": xfd_err}
        case Gone(directive=directive):
            return {"outcome": "gone", "directive": directive.kind.value}
        case Pending(generation=generation):
            return {"outcome": "pending", "generation": generation}
        case Rejected(refusal=refusal):
            return {"outcome": "rejected", "reason": refusal.reason, "taken": taken}
        case Blocked():
            return {"outcome": "blocked"}


def vcpu_result(vcpu: vcpu_pb2.Vcpu) -> Said:
    """A vCPU as GetVcpu and CreateVcpu answer it."""
    return {
        "state": vcpu_pb2.VcpuState.Name(vcpu.state).removeprefix("VCPU_STATE_"),
        "next_seq": vcpu.next_seq,
        "xcr0": vcpu.xcr0,
        "xfd": vcpu.xfd,
        "xfd_err": vcpu.xfd_err,
        "xfeatures": vcpu.fpstate.xfeatures,
        "size": vcpu.fpstate.size_bytes,
        "supported_xcr0": vcpu.guest_supported_xcr0,
    }


def decision_op(exit_name: str, generation: int, decision: str, request: str) -> Said:
    """A decision about ``{vcpu}/exits/{seq}``."""
    vcpu, _, seq = exit_name.partition("/exits/")
    return {"vcpu": vcpu, "seq": int(seq), "generation": generation, "decision": decision, "request": request}
