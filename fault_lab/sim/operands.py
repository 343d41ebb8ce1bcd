"""Requests and replies as records have them for the checks of histories: ``op`` and ``result``; none for the others."""

from __future__ import annotations

from typing import Any

from fpstate.v1 import vcpu_pb2

from fault_lab.linear.form import decision_op, event_op, outcome_result, vcpu_result
from fault_lab.sim.reads import Read, Registers
from fault_lab.sim.services import WaitOutcome
from fault_lab.sim.wire import Answer
from guest_agent.outcome import Done, Gone, Injected, Pending, Rejected
from host_agent import commands as c
from vmm_controller.policy import ExitView

Fields = dict[str, Any]


def operation(request: object) -> Fields:
    """What a request asks for."""
    match request:
        case c.SubmitBatch(events=(event,)):
            return {"op": event_op(event.vcpu, event.seq, event.kind)}
        case WaitOutcome(vcpu=vcpu, seq=seq):
            return {"op": {"vcpu": vcpu, "seq": seq}}
        case c.CreateVcpu():
            return {"op": {"vcpu": f"{request.vm}/vcpus/{request.index}", "request": request.request_id}}
        case c.ResolveExit():
            decided = request.decision.kind.name
            return {"op": decision_op(request.exit, request.generation, decided, request.request_id)}
        case Read(vcpu=vcpu):
            return {"op": {"vcpu": vcpu}}
        case _:
            return {}


def result(request: object, reply: object) -> Fields:
    """What was answered to it."""
    match reply:
        case Answer(outcome=outcome, taken=taken) if isinstance(request, c.SubmitBatch):
            return {"result": outcome_result(outcome, taken=taken >= request.events[0].seq)}
        case Done() | Injected() | Gone() | Pending() | Rejected():
            return {"result": outcome_result(reply)}
        case vcpu_pb2.Vcpu():
            return {"result": vcpu_result(reply)}
        case Registers(read=read):
            return {"result": dict(read)}
        case ExitView() if isinstance(request, c.ResolveExit):
            return {"result": {"generation": reply.generation, "state": reply.state.name}}
        case _:
            return {}
