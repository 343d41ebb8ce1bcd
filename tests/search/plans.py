"""Plans that searches are tried on, and control planes that are wrong in a way that only some search finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fpstate.fault.v1 import plan_pb2

from fault_lab.plan.load import load_plan
from fault_lab.plans import shipped_plans
from fault_lab.sim import services
from fault_lab.sim.rpc import Exchange
from fault_lab.sim.services import Service, WaitOutcome
from host_agent import commands as c
from host_agent import decisions, exit_desk
from host_agent.exits import Decision, DecisionKind, ExitRecord, ExitState
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import HostState

HERE = Path(__file__).parent


def plan_of(name: str) -> plan_pb2.Plan:
    """A shipped plan, or a file of these tests."""
    path = shipped_plans().get(name) or HERE.parent / name
    return load_plan(path.read_text(encoding="utf-8"), name)


def lost_wake_up(patch: pytest.MonkeyPatch) -> None:
    """Who waits for an outcome is not told what there is already."""

    def wait_outcome(service: Service, exchange: Exchange) -> object:
        request = exchange.request
        assert isinstance(request, WaitOutcome)
        service._host.apply(c.KeepAlive(session=request.session, epoch=request.epoch))
        service._waits.setdefault((request.vcpu, request.seq), []).append((request.session, exchange))
        return services._LATER

    patch.setitem(services.METHODS, "WaitOutcome", replace(services.METHODS["WaitOutcome"], handler=wait_outcome))


def forgets_the_second_retry(patch: pytest.MonkeyPatch) -> None:
    """Of an exit that fails again the retry is forgotten: its vCPU stays parked for ever."""
    real = decisions._EFFECTS[DecisionKind.RETRY]

    def retry(state: HostState, vcpu: Vcpu, record: ExitRecord, decision: Decision) -> None:
        if record.generation == 1:
            real(state, vcpu, record, decision)
            return
        record.state = ExitState.APPLYING
        record.expires_ns = None
        exit_desk.changed(state, record)

    patch.setitem(decisions._EFFECTS, DecisionKind.RETRY, retry)
