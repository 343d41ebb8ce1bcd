"""Points in processes of their own are decided by the runner's table; where there is none, nothing happens."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc
from typer.testing import CliRunner

from fault_lab.live.asked import AskedFaults
from fault_lab.live.evaluator import Evaluator
from fault_lab.live.points import LiveFaults
from fault_lab.plan.load import load_plan
from fpstated.cli import app
from host_agent.service.fault_points import FaultPoints
from vmm_controller.decision_point import DecisionPoint, Trouble
from vmm_controller.policy import Retry

PLAN = """
api-version: fpstate.fault.v1
name: asked
topology: {hosts: [{name: host}], vms: [{name: a}], controllers: [{name: ctl}]}
faults:
  - {name: torn, point: journal.sync, attributes: {fail-nth: 2}}
  - {name: lost, point: controller.decide, attributes: {fail-nth: 1}, action: drop}
  - {name: late, point: controller.decide, attributes: {fail-nth: 2}, action: {delay: 250ms}}
  - {name: twice, point: controller.decide, attributes: {fail-nth: 3}, action: duplicate}
  - {name: other, point: controller.decide, attributes: {fail-nth: 4}, action: corrupt}
  - {name: unheard, point: rpc.client.receive, scope: {trigger: KeepAlive}, action: UNAVAILABLE}
"""


@pytest.mark.asyncio
async def test_what_processes_are_told(tmp_path: Path) -> None:
    """The hits of all of them in one table, with their numbers; and nothing once the runner is gone."""
    address = f"unix:{tmp_path}/points.sock"
    told: list[str] = []
    faults = LiveFaults(
        load_plan(PLAN), on_fired=lambda fired: told.append(f"{fired.fault} {fired.entity} {fired.hit}")
    )
    host, controller, guest = FaultPoints(address, "host"), DecisionPoint(address, "ctl"), AskedFaults(address)
    with Evaluator(faults, address):
        assert host.errno("journal.sync") == 0  # the first hit, before anything is armed
        faults.enter("chaos")
        assert [host.errno("journal.sync") for _ in range(3)] == [0, 5, 0]
        assert [await controller.decide(Retry()) for _ in range(5)] == [
            Trouble(lost=True),
            Trouble(late_s=0.25),
            Trouble(copies=1),
            Trouble(contradicted=True),
            Trouble(),
        ]
        assert guest.hit("rpc.client.receive", "/fpstate.v1.GuestSessionService/OpenSession", "OpenSession") is None
        firing = guest.hit("rpc.client.receive", "/fpstate.v1.GuestSessionService/KeepAlive", "KeepAlive")
        assert firing is not None
        assert (firing.fired.fault, firing.action.code) == ("unheard", 14)  # type: ignore[union-attr]
        faults.enter("heal")
        assert await controller.decide(Retry()) == Trouble()
    assert host.errno("journal.sync") == 0
    assert await controller.decide(Retry()) == Trouble()
    assert guest.hit("rpc.client.receive", "/fpstate.v1.GuestSessionService/KeepAlive", "KeepAlive") is None
    assert told == [
        "torn host 3",
        "lost ctl 1",
        "late ctl 2",
        "twice ctl 3",
        "other ctl 4",
        "unheard /fpstate.v1.GuestSessionService/KeepAlive 1",
    ]


def test_a_hosts_own_point_is_none_of_the_runners(tmp_path: Path) -> None:
    """It is armed in the host, so that the host's log replays with it."""
    address = f"unix:{tmp_path}/points.sock"
    with Evaluator(LiveFaults(load_plan(PLAN)), address), grpc.insecure_channel(address) as channel:
        request = fault_pb2.EvaluateRequest(point="fpstate.realloc.alloc")
        with pytest.raises(grpc.RpcError, match=r"point: fpstate\.realloc\.alloc is a host's own"):
            fault_pb2_grpc.FaultServiceStub(channel).Evaluate(request)


def test_a_host_asks_nobody_without_faults() -> None:
    """`--fault-points` is refused on a host that was not started with `--faults`."""
    done = CliRunner().invoke(app, ["host", "--ephemeral", "--fault-points", "unix:/tmp/points.sock"])
    assert done.exit_code == 2
    assert done.stderr == "fpstated host: --fault-points: expected --faults with it\n"
