"""FaultService: off by default, and exact about what it arms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc
from fpstate.v1 import vcpu_pb2
from google.protobuf import duration_pb2

from host_agent.service.server import HostServer
from host_agent.state import HostConfig
from tests.service.world import World, error_info

pytestmark = pytest.mark.asyncio

ENOMEM = fault_pb2.FaultAction(errno_action=fault_pb2.ErrnoAction(errno_value=12))


async def arm(world: World, **fields: Any) -> fault_pb2.Fault:  # noqa: ANN401 -- any field of Fault
    """Arm a fault, ENOMEM at every growth unless said otherwise."""
    merged: dict[str, Any] = {"point": "fpstate.realloc.alloc", "action": ENOMEM} | fields
    fault = fault_pb2.Fault(**merged)
    return (await world.faults.ArmFault(fault_pb2.ArmFaultRequest(fault=fault))).fault


async def test_a_host_that_was_not_started_with_faults_has_none(tmp_path: Path) -> None:
    """Every call is refused with FAULTS_NOT_ENABLED, those that are not built too."""
    async with (
        HostServer(HostConfig(), f"unix:{tmp_path}/s") as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        faults = fault_pb2_grpc.FaultServiceStub(channel)
        calls: list[Any] = [
            faults.ArmFault(fault_pb2.ArmFaultRequest()),
            faults.ListFaults(fault_pb2.ListFaultsRequest()),
            faults.Evaluate(fault_pb2.EvaluateRequest()),
            faults.WatchFaults(fault_pb2.WatchFaultsRequest()).read(),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert error_info(caught.value).reason == "FAULTS_NOT_ENABLED"


async def test_a_fault_fires_and_counts(world: World) -> None:
    """Hits and fires are counted within the scope; times is what is left."""
    vm = await world.vm(vcpus=2)
    guest = await world.guest(f"{vm}/vcpus/0", f"{vm}/vcpus/1")
    scope = fault_pb2.FaultScope(vcpu=f"{vm}/vcpus/1", owner="me")
    armed = await arm(world, scope=scope, attributes=fault_pb2.FaultAttributes(times=1))
    grown, parked = await guest.submit(guest.enable_tiles(), guest.enable_tiles(f"{vm}/vcpus/1"))
    assert grown.HasField("done")
    assert parked.HasField("pending")
    seen = (await world.faults.GetFault(fault_pb2.GetFaultRequest(name=armed.name))).fault
    assert (seen.hits, seen.fired, seen.attributes.times) == (1, 1, 0)


async def test_fail_nth_is_exactly_that_one(world: World) -> None:
    """The second allocation of a guest's container, whatever the other attributes say."""
    vm = await world.vm(vcpus=0)
    await arm(world, point="fpstate.guest.alloc", attributes=fault_pb2.FaultAttributes(fail_nth=2))
    codes = []
    for index in range(3):
        try:
            await world.vcpus.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent=vm, index=index))
            codes.append(grpc.StatusCode.OK)
        except grpc.aio.AioRpcError as error:
            codes.append(error.code())
    assert codes == [grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OK]


async def test_faults_are_listed_disarmed_and_reset(world: World) -> None:
    """In the order they were armed; an owner's reset leaves the others' alone."""
    mine, theirs = fault_pb2.FaultScope(owner="me"), fault_pb2.FaultScope(owner="them")
    names = [(await arm(world, scope=scope)).name for scope in (theirs, mine, mine)]
    listed = await world.faults.ListFaults(fault_pb2.ListFaultsRequest(page_size=2))
    assert [fault.name for fault in listed.faults] == names[:2]
    await world.faults.DisarmFault(fault_pb2.DisarmFaultRequest(name=names[1]))
    reset = await world.faults.ResetFaults(fault_pb2.ResetFaultsRequest(owner="me"))
    assert [fault.name for fault in reset.faults] == [names[2]]
    left = await world.faults.ListFaults(fault_pb2.ListFaultsRequest())
    assert [fault.name for fault in left.faults] == [names[0]]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.faults.DisarmFault(fault_pb2.DisarmFaultRequest(name=names[2]))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("fields", "reason", "path"),
    [
        pytest.param({"point": "Not A Point"}, "FIELD_INVALID", "fault.point", id="no name of a point"),
        pytest.param({"point": "fpstate.no.such"}, "FAULT_POINT_UNKNOWN", "", id="a point the host does not have"),
        pytest.param({"action": fault_pb2.FaultAction()}, "FIELD_INVALID", "fault.action", id="no action"),
        pytest.param(
            {"attributes": fault_pb2.FaultAttributes(probability_ppm=1_000_001)},
            "FIELD_INVALID",
            "fault.attributes.probability_ppm",
            id="more than always",
        ),
        pytest.param(
            {"attributes": fault_pb2.FaultAttributes(fail_nth=0)},
            "FIELD_INVALID",
            "fault.attributes.fail_nth",
            id="the hit before the first",
        ),
        pytest.param(
            {"scope": fault_pb2.FaultScope(vcpu="x")}, "FIELD_INVALID", "fault.scope.vcpu", id="no name of a vCPU"
        ),
        pytest.param(
            {"lease": duration_pb2.Duration(seconds=1)}, "FIELD_INVALID", "fault.lease", id="a lease, not built"
        ),
        pytest.param({"hits": 1}, "FIELD_INVALID", "fault.hits", id="an output as input"),
    ],
)
async def test_a_bad_fault_is_not_armed(world: World, fields: dict[str, Any], reason: str, path: str) -> None:
    """The refusal names what is wrong."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await arm(world, **fields)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info = error_info(caught.value)
    assert (info.reason, info.metadata.get("field", "")) == (reason, path)
    assert not (await world.faults.ListFaults(fault_pb2.ListFaultsRequest())).faults


async def test_what_is_not_built_of_it_says_so(world: World) -> None:
    """UNIMPLEMENTED, where faults are on."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.faults.AdvanceClock(fault_pb2.AdvanceClockRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error_info(caught.value).metadata["capability"] == "manual-clock"
