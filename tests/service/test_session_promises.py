"""What sessions promise beyond what the other files here test, and the limit of each table that a client can fill."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from fpstate.v1 import event_pb2, exit_pb2, session_pb2, task_pb2, vcpu_pb2, vm_pb2

from host_agent.service.clock import ManualClock
from host_agent.service.server import HostServer
from host_agent.state import HostConfig
from tests.service.world import World, error_info, read, read_outcomes

pytestmark = pytest.mark.asyncio

SMALL = HostConfig(
    faults=True,
    check_invariants=True,
    max_vms=3,
    max_vcpus_per_vm=2,
    max_tasks_per_vm=4,
    max_sessions=2,
    max_outcomes=3,
    max_resolved_exits=2,
)
GP = exit_pb2.Decision(inject_gp=exit_pb2.InjectGp())


@pytest_asyncio.fixture
async def small(tmp_path: Path) -> AsyncIterator[World]:
    """A host whose tables are soon full."""
    clock = ManualClock()
    async with (
        HostServer(SMALL, f"unix:{tmp_path}/s", clock=clock) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield World(server, clock, channel)


async def limit_of(call: Any) -> tuple[str, str]:  # noqa: ANN401 -- a call has no public type
    """Await a call that goes beyond a limit; its name, and how much there may be."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info = error_info(caught.value)
    assert info.reason == "LIMIT_REACHED"
    return info.metadata["limit"], info.metadata["maximum"]


# -- promises ----------------------------------------------------------------------------------------------------------


async def test_an_ended_lease_destroys_nothing(world: World) -> None:
    """The vCPU stays parked on its exit, which is decided without a session; the next one gets the final outcome."""
    guest = await world.guest(lease_s=5)
    await guest.submit(guest.event(xsetbv=event_pb2.Xsetbv(value=7)))
    await world.fail_next_growth()
    await guest.submit(guest.enable_tiles())
    world.clock.advance(6)
    vcpu = (await world.vcpus.GetVcpu(vcpu_pb2.GetVcpuRequest(name=guest.vcpu))).vcpu
    assert (vcpu.state, vcpu.xcr0, vcpu.next_seq) == (vcpu_pb2.VCPU_STATE_PARKED, 7, 3)
    await world.resolve(await world.control(), await world.open_exit(), GP)
    again = await world.guest(guest.vcpu)
    assert again.next_seq == {guest.vcpu: 3}
    wait = session_pb2.WaitOutcomeRequest(session=again.session, epoch=again.epoch, vcpu=again.vcpu, seq=2)
    assert (await world.sessions.WaitOutcome(wait)).outcome.inject.vector == 13


async def test_numbers_are_the_vcpus_over_streams_and_calls(world: World) -> None:
    """Two streams, a unary call and a newer session of one vCPU: one row of numbers."""
    guest = await world.guest()
    streams: list[Any] = [world.sessions.Attach() for _ in range(2)]
    for stream in streams:
        await stream.write(guest.hello())
        await read(stream)
    await streams[0].write(guest.batch(guest.event(hlt=event_pb2.Hlt())))
    assert [outcome.seq for outcome in await read_outcomes(streams[1], 1)] == [1], "the newest attachment hears"
    assert [outcome.seq for outcome in await guest.submit(guest.event(hlt=event_pb2.Hlt()))] == [2]
    for stream in streams:
        stream.cancel()
    newer = await world.guest(guest.vcpu)
    assert newer.next_seq == {guest.vcpu: 3}


async def test_an_exit_says_how_much_time_is_left(world: World) -> None:
    """To whoever looks, by the host's clock, until the deadline has decided."""
    guest = await world.guest(lease_s=3600)
    await world.fail_next_growth()
    await guest.submit(guest.enable_tiles())
    request = exit_pb2.GetExitRequest(name=await world.open_exit())
    for elapsed_s in (0, 10, 19):
        world.clock.advance(elapsed_s)
    assert (await world.exits.GetExit(request)).exit.expires_in.ToSeconds() == 1
    world.clock.advance(1)
    assert not (await world.exits.GetExit(request)).exit.HasField("expires_in")


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_outcomes_are_kept_up_to_a_limit_until_they_were_received(small: World) -> None:
    """Beyond it an event is not taken and its number not used; what was received makes room; what was not is there."""
    guest = await small.guest()
    for _ in range(3):
        await guest.submit(guest.event(hlt=event_pb2.Hlt()))
    too_much = guest.event(hlt=event_pb2.Hlt())
    (refused,) = await guest.submit(too_much)
    info = error_info(refused.rejected)
    assert (info.reason, info.metadata["limit"], info.metadata["maximum"]) == (
        "LIMIT_REACHED",
        "outcomes_per_vcpu_max",
        "3",
    )
    request = guest.request(too_much)
    request.batch.outcomes_received_through.add(vcpu=guest.vcpu, seq=2)
    (done,) = (await small.sessions.SubmitEvents(request)).outcomes.outcomes
    assert (done.seq, done.HasField("done")) == (4, True)
    wait = session_pb2.WaitOutcomeRequest(session=guest.session, epoch=guest.epoch, vcpu=guest.vcpu, seq=3)
    assert (await small.sessions.WaitOutcome(wait)).outcome.HasField("done")
    wait.seq = 2
    with pytest.raises(grpc.aio.AioRpcError) as forgotten:
        await small.sessions.WaitOutcome(wait)
    assert error_info(forgotten.value).reason == "OUTCOME_FORGOTTEN"


async def test_vms_vcpus_and_tasks_have_limits(small: World) -> None:
    """The host's VMs, a VM's vCPUs, a VM's tasks; each refusal names its limit, and others go on."""
    for vm in "abc":
        await small.vm(vm, vcpus=0)
    create = small.vms.CreateVm(vm_pb2.CreateVmRequest(vm_id="d"))
    assert await limit_of(create) == ("vms_max", "3")
    for index in range(2):
        await small.vcpus.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent="vms/a", index=index))
    with pytest.raises(grpc.aio.AioRpcError) as beyond:
        await small.vcpus.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent="vms/a", index=2))
    assert error_info(beyond.value).metadata["field"] == "index"
    for nr in range(3):  # beside the main one
        await small.tasks.CreateTask(task_pb2.CreateTaskRequest(parent="vms/b", task_id=f"t{nr}"))
    fourth = small.tasks.CreateTask(task_pb2.CreateTaskRequest(parent="vms/b", task_id="t3"))
    assert await limit_of(fourth) == ("tasks_per_vm_max", "4")


async def test_sessions_have_a_limit_and_so_have_those_that_ended(small: World) -> None:
    """A third is refused; of those that ended the latest two are still known to have expired."""
    vcpus = [f"{await small.vm(vm)}/vcpus/0" for vm in "abc"]
    guests = [await small.guest(vcpu, lease_s=5) for vcpu in vcpus[:2]]
    third = small.sessions.OpenSession(session_pb2.OpenSessionRequest(vcpus=[vcpus[2]]))
    assert await limit_of(third) == ("sessions_max", "2")
    small.clock.advance(6)
    later = await small.guest(vcpus[2], lease_s=5)
    small.clock.advance(6)
    reasons = []
    for guest in (*guests, later):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await small.sessions.KeepAlive(session_pb2.KeepAliveRequest(session=guest.session, epoch=guest.epoch))
        reasons.append(error_info(refused.value).reason)
    assert sorted(reasons) == ["SESSION_EXPIRED", "SESSION_EXPIRED", "SESSION_NOT_FOUND"]


async def test_resolved_exits_are_remembered_up_to_a_limit(small: World) -> None:
    """The latest two; who asks for an older one hears that there is none."""
    guest = await small.guest(lease_s=3600)
    control = await small.control()
    for seq in range(1, 4):
        await small.fail_next_growth()
        request = guest.request(guest.enable_tiles())
        request.batch.outcomes_received_through.add(vcpu=guest.vcpu, seq=seq - 1)
        await small.sessions.SubmitEvents(request)
        await small.resolve(control, f"{guest.vcpu}/exits/{seq}", GP)
    known = await small.exits.ListExits(exit_pb2.ListExitsRequest())
    assert [each.name.rpartition("/")[2] for each in known.exits] == ["2", "3"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await small.exits.GetExit(exit_pb2.GetExitRequest(name=f"{guest.vcpu}/exits/1"))
    assert error_info(refused.value).reason == "EXIT_NOT_FOUND"
