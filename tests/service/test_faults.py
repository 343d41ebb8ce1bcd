"""FaultService: off by default, and exact about what it arms."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc
from fpstate.v1 import vcpu_pb2
from google.protobuf import duration_pb2

from host_agent.service.clock import MonotonicClock
from host_agent.service.errors import Failure
from host_agent.service.fault_watch import FaultWatcher, FaultWatchers
from host_agent.service.server import HostServer
from host_agent.state import HostConfig, HostState
from tests.service.world import TIMEOUT_S, World, error_info

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
            {"lease": duration_pb2.Duration(nanos=1)}, "FIELD_INVALID", "fault.lease", id="a lease of a nanosecond"
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


# -- leases ------------------------------------------------------------------------------------------------------------


async def listed(world: World) -> list[str]:
    """The names of the faults that are armed."""
    return [fault.name for fault in (await world.faults.ListFaults(fault_pb2.ListFaultsRequest())).faults]


async def test_a_lease_heals_what_a_dead_tester_left(world: World) -> None:
    """A fault goes when its lease ends, unless its owner renews in time; one without a lease stays."""
    mine, theirs = fault_pb2.FaultScope(owner="me"), fault_pb2.FaultScope(owner="them")
    lease = duration_pb2.Duration(seconds=10)
    leased = (await arm(world, scope=mine, lease=lease)).name
    dead = (await arm(world, scope=theirs, lease=lease)).name
    kept = (await arm(world, scope=theirs)).name
    world.clock.advance(9)
    assert await listed(world) == [leased, dead, kept]
    renewed = await world.faults.RenewFaults(fault_pb2.RenewFaultsRequest(owner="me"))
    assert renewed.renewed == 1
    world.clock.advance(9)
    assert await listed(world) == [leased, kept]
    world.clock.advance(1)
    assert await listed(world) == [kept]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.faults.GetFault(fault_pb2.GetFaultRequest(name=leased))
    assert error_info(caught.value).reason == "FAULT_NOT_FOUND"


async def test_reset_without_an_owner_halts_everything(world: World) -> None:
    """One call, one revision; a repetition by request id returns the same faults and disarms nothing more."""
    names = [(await arm(world, scope=fault_pb2.FaultScope(owner=owner))).name for owner in ("me", "them", "")]
    request = fault_pb2.ResetFaultsRequest(request_id="halt")
    first = await world.faults.ResetFaults(request)
    assert [fault.name for fault in first.faults] == names
    assert await listed(world) == []
    later = await arm(world)
    assert (await world.faults.ResetFaults(request)).faults == first.faults
    assert await listed(world) == [later.name]


# -- other programs' points --------------------------------------------------------------------------------------------


async def test_another_program_asks(world: World) -> None:
    """Evaluate counts a hit of a point that is not the host's, within its scope, and says what is to happen."""
    scope = fault_pb2.FaultScope(vm="vms/a", owner="me")
    fault = await arm(
        world, point="mine.io.submit", scope=scope, attributes=fault_pb2.FaultAttributes(fail_nth=2), action=ENOMEM
    )
    asked = fault_pb2.EvaluateRequest(point="mine.io.submit", scope=fault_pb2.FaultScope(vm="vms/a"))
    elsewhere = fault_pb2.EvaluateRequest(point="mine.io.submit", scope=fault_pb2.FaultScope(vm="vms/b"))
    answers = [await world.faults.Evaluate(request) for request in (asked, elsewhere, asked, asked)]
    assert [answer.errno_value for answer in answers] == [0, 0, 12, 0]
    assert [answer.fault for answer in answers] == ["", "", fault.name, ""]
    seen = (await world.faults.GetFault(fault_pb2.GetFaultRequest(name=fault.name))).fault
    assert (seen.hits, seen.fired) == (3, 1)


async def test_a_repeated_hit_is_one(world: World) -> None:
    """With a request id the answer is the first one, and the hit counts once."""
    fault = await arm(world, point="mine.step", attributes=fault_pb2.FaultAttributes(times=1))
    request = fault_pb2.EvaluateRequest(request_id="1", point="mine.step")
    assert [(await world.faults.Evaluate(request)).errno_value for _ in range(2)] == [12, 12]
    seen = (await world.faults.GetFault(fault_pb2.GetFaultRequest(name=fault.name))).fault
    assert (seen.hits, seen.fired) == (1, 1)


async def test_a_drawn_delay_is_told(world: World) -> None:
    """Of a range the answer has the one value that was drawn, in both ends."""
    least, most = duration_pb2.Duration(nanos=1_000), duration_pb2.Duration(nanos=2_000)
    action = fault_pb2.FaultAction(delay_action=fault_pb2.DelayAction(min=least, max=most))
    await arm(world, point="link.message", action=action)
    request = fault_pb2.EvaluateRequest(point="link.message", scope=fault_pb2.FaultScope(entity="a->b"))
    told = (await world.faults.Evaluate(request)).action.delay_action
    assert told.min == told.max
    assert 1_000 <= told.min.nanos <= 2_000


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (fault_pb2.EvaluateRequest(point="Not A Point"), "point"),
        (fault_pb2.EvaluateRequest(point="fpstate.realloc.alloc"), "point"),
        (fault_pb2.EvaluateRequest(point="a", scope=fault_pb2.FaultScope(vcpu="x")), "scope.vcpu"),
    ],
    ids=["no name of a point", "a point of the host's own", "no name of a vCPU"],
)
async def test_a_bad_hit_is_not_counted(world: World, request_: fault_pb2.EvaluateRequest, path: str) -> None:
    """The refusal names the field."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.faults.Evaluate(request_)
    assert error_info(caught.value).metadata["field"] == path


# -- watching ----------------------------------------------------------------------------------------------------------


async def test_watching(world: World) -> None:
    """What is armed already, then each change with the counts after it, and where a fault fired."""
    guest = await world.guest(f"{await world.vm()}/vcpus/0")
    mine = fault_pb2.FaultScope(owner="me")
    before = await arm(world, scope=mine, attributes=fault_pb2.FaultAttributes(times=1))
    await arm(world, scope=fault_pb2.FaultScope(owner="them"), point="mine.step")
    stream: Any = world.faults.WatchFaults(fault_pb2.WatchFaultsRequest(owner="me"), timeout=TIMEOUT_S)
    changes = [await stream.read()]
    await guest.submit(guest.enable_tiles())
    lease = duration_pb2.Duration(seconds=5)
    short = await arm(world, scope=mine, lease=lease)
    world.clock.advance(5)
    await world.faults.ResetFaults(fault_pb2.ResetFaultsRequest())
    changes += [await stream.read() for _ in range(4)]
    kinds = [fault_pb2.FaultChangeKind.Name(change.kind).removeprefix("FAULT_CHANGE_KIND_") for change in changes]
    assert kinds == ["ARMED", "FIRED", "ARMED", "EXPIRED", "DISARMED"]
    assert [change.fault.name for change in changes] == [before.name, before.name, short.name, short.name, before.name]
    fired = changes[1]
    assert (fired.fault.fired, fired.fault.attributes.times) == (1, 0)
    assert (fired.hit_scope.vcpu, fired.hit_scope.trigger) == ("vms/a/vcpus/0", "Xsetbv")
    assert fired.hit_scope.xfeatures == 1 << 18
    assert (fired.hit, fired.action) == (1, fired.fault.action)


async def test_a_watcher_that_does_not_read_is_given_up() -> None:
    """It hears nothing of what came before, and watches again."""
    watcher = FaultWatcher("", queue_max=2)
    for _ in range(3):
        watcher.push(fault_pb2.WatchFaultsResponse())
    with pytest.raises(Failure, match="the watcher is 2 changes behind") as caught:
        await watcher.next()
    assert caught.value.reason == "LIMIT_REACHED"


async def test_a_full_disk_ends_what_stands_on_what_has_not_happened() -> None:
    """After it, what a watcher was told may not be."""
    watchers, watcher = FaultWatchers(HostState(HostConfig())), FaultWatcher("")
    watchers.add(watcher)
    watchers.rolled_back()
    with pytest.raises(Failure) as caught:
        await watcher.next()
    assert caught.value.reason == "STORAGE_FULL"


# -- calls -------------------------------------------------------------------------------------------------------------


def status(code: grpc.StatusCode, message: str = "") -> fault_pb2.FaultAction:
    """End a call with this status."""
    return fault_pb2.FaultAction(status_action=fault_pb2.StatusAction(code=code.value[0], message=message))


async def test_a_call_fails_before_it_is_carried_out(world: World) -> None:
    """The caller has the status; nothing has been done."""
    vm = await world.vm(vcpus=0)
    scope = fault_pb2.FaultScope(entity="*/CreateVcpu")
    await arm(world, point="rpc.server.receive", scope=scope, action=status(grpc.StatusCode.UNAVAILABLE, "gone"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.vcpus.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent=vm, index=0))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "gone")
    assert not (await world.vcpus.ListVcpus(vcpu_pb2.ListVcpusRequest(parent=vm))).vcpus


async def test_a_reply_is_lost(world: World) -> None:
    """The call was carried out, the caller does not know; asking again with the request id gives the lost answer."""
    vm = await world.vm(vcpus=0)
    once = fault_pb2.FaultAttributes(times=1)
    scope = fault_pb2.FaultScope(vm=vm, trigger="CreateVcpu")
    action = status(grpc.StatusCode.UNAVAILABLE)
    fault = await arm(world, point="rpc.server.reply", scope=scope, attributes=once, action=action)
    request = vcpu_pb2.CreateVcpuRequest(request_id="once", parent=vm, index=0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.vcpus.CreateVcpu(request)
    assert fault.name in (caught.value.details() or "")
    assert len((await world.vcpus.ListVcpus(vcpu_pb2.ListVcpusRequest(parent=vm))).vcpus) == 1
    assert (await world.vcpus.CreateVcpu(request)).vcpu.name == f"{vm}/vcpus/0"


async def test_a_call_takes_long(world: World) -> None:
    """The delay is on the host's clock; FaultService is never delayed."""
    vm = await world.vm(vcpus=0)
    ten = duration_pb2.Duration(seconds=10)
    action = fault_pb2.FaultAction(delay_action=fault_pb2.DelayAction(min=ten))
    await arm(world, point="rpc.server.receive", action=action)
    changes: Any = world.faults.WatchFaults(fault_pb2.WatchFaultsRequest(), timeout=TIMEOUT_S)
    assert (await changes.read()).kind == fault_pb2.FAULT_CHANGE_KIND_ARMED
    call = asyncio.ensure_future(world.vcpus.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent=vm, index=0)))
    assert (await changes.read()).kind == fault_pb2.FAULT_CHANGE_KIND_FIRED
    assert not call.done()
    await world.faults.AdvanceClock(fault_pb2.AdvanceClockRequest(duration=ten))
    assert (await asyncio.wait_for(call, TIMEOUT_S)).vcpu.name == f"{vm}/vcpus/0"


async def test_a_clock_that_is_the_systems_is_not_moved(tmp_path: Path) -> None:
    """CLOCK_NOT_MANUAL."""
    async with (
        HostServer(HostConfig(faults=True), f"unix:{tmp_path}/s", clock=MonotonicClock()) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fault_pb2_grpc.FaultServiceStub(channel).AdvanceClock(fault_pb2.AdvanceClockRequest())
        assert error_info(caught.value).reason == "CLOCK_NOT_MANUAL"


async def test_a_host_with_faults_has_a_clock_that_is_put_forward(tmp_path: Path) -> None:
    """A lease of an hour is over at once; and by half as fast again the clock runs on."""
    async with (
        HostServer(HostConfig(faults=True), f"unix:{tmp_path}/s") as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        faults = fault_pb2_grpc.FaultServiceStub(channel)
        fault = fault_pb2.Fault(
            point="link.message",
            action=fault_pb2.FaultAction(drop_action=fault_pb2.DropAction()),
            lease=duration_pb2.Duration(seconds=3600),
        )
        await faults.ArmFault(fault_pb2.ArmFaultRequest(fault=fault))
        changes: Any = faults.WatchFaults(fault_pb2.WatchFaultsRequest(), timeout=TIMEOUT_S)
        assert (await changes.read()).kind == fault_pb2.FAULT_CHANGE_KIND_ARMED
        skew = fault_pb2.AdvanceClockRequest(duration=duration_pb2.Duration(seconds=3601), drift_ppm=500_000)
        assert (await faults.AdvanceClock(skew)).uptime.seconds >= 3601
        assert (await changes.read()).kind == fault_pb2.FAULT_CHANGE_KIND_EXPIRED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await faults.AdvanceClock(fault_pb2.AdvanceClockRequest(drift_ppm=-1_000_000))
        assert "drift_ppm: expected -999,999..1,000,000, got -1000000" in (caught.value.details() or "")


# -- what a host says of them ------------------------------------------------------------------------------------------


async def test_the_log_is_as_loud_as_the_fault_says(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """0 is silent about firing, 1 a line, 2 a line with the trace; a limit of lines holds for its interval."""
    vm = await world.vm(vcpus=0)
    quiet, limited = fault_pb2.FaultAttributes(verbose=0), fault_pb2.FaultAttributes(verbose=2)
    limited.verbose_ratelimit_interval_ms, limited.verbose_ratelimit_burst = 1000, 2
    said = []
    with caplog.at_level(logging.INFO, "fpstated.host"):
        for attributes in (quiet, fault_pb2.FaultAttributes(), limited):
            caplog.clear()
            fault = await arm(world, point="kvm.vcpu.alloc", attributes=attributes)
            for seconds in (0, 0, 0, 1):
                world.clock.advance(seconds)
                with pytest.raises(grpc.aio.AioRpcError):
                    await world.vcpus.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent=vm, index=0))
            await world.faults.ResetFaults(fault_pb2.ResetFaultsRequest())
            said.append([record.getMessage().replace(fault.name, "F") for record in caplog.records])
    assert said[0] == ["fault F at kvm.vcpu.alloc armed", "fault F at kvm.vcpu.alloc disarmed"]
    line = "fault F fired at kvm.vcpu.alloc for vms/a/vcpus/0 (hit {}, times -1, space 0)"
    assert said[1][1:-1] == [line.format(nr) for nr in (1, 2, 3, 4)]
    trace = ", by kvm.vcpu.alloc < CreateVcpu"
    assert said[2][1:-1] == [line.format(nr) + trace for nr in (1, 2, 4)]


async def test_the_metrics_say_while_anything_is_armed(world: World) -> None:
    """How many are armed, and how often points failed; what is disarmed stays counted."""
    registry = world.server.metrics.registry
    assert registry.get_sample_value("fpstated_faults_armed") == 0
    await arm(world, point="kvm.vcpu.alloc", lease=duration_pb2.Duration(seconds=1))
    assert registry.get_sample_value("fpstated_faults_armed") == 1
    vm = await world.vm(vcpus=0)
    with pytest.raises(grpc.aio.AioRpcError):
        await world.vcpus.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent=vm, index=0))
    world.clock.advance(1)
    assert registry.get_sample_value("fpstated_faults_armed") == 0
    assert registry.get_sample_value("fpstated_faults_fired_total", {"point": "kvm.vcpu.alloc"}) == 1
