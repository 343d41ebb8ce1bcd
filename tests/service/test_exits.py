"""Exits on the wire: control, decisions, and watching."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from fpstate.v1 import exit_pb2

from host_agent.service.errors import Failure
from host_agent.service.exit_watch import ExitNews, ExitWatcher
from tests.service.world import TIMEOUT_S, XCR0_AMX, XTILE_DATA, World, error_info

pytestmark = pytest.mark.asyncio

RETRY = exit_pb2.Decision(retry=exit_pb2.Retry())
GP = exit_pb2.Decision(inject_gp=exit_pb2.InjectGp())


async def parked(world: World, vm_id: str = "a", **vm: Any) -> exit_pb2.Exit:  # noqa: ANN401
    """A VM whose vCPU 0 is parked on a failed growth; returns the exit."""
    name = await world.vm(vm_id, **vm)
    await world.fail_next_growth(vcpu=f"{name}/vcpus/0")
    guest = await world.guest(f"{name}/vcpus/0", lease_s=3600)
    (outcome,) = await guest.submit(guest.enable_tiles())
    return (await world.exits.GetExit(exit_pb2.GetExitRequest(name=outcome.pending.exit))).exit


async def test_an_exit_says_what_kvm_run_would(world: World) -> None:
    """Reason, errno, cause, trigger, what was and what would be, what is missing, and what may be decided."""
    record = await parked(world)
    assert record.name == "vms/a/vcpus/0/exits/1"
    assert record.reason == exit_pb2.EXIT_REASON_FPU_REALLOC_FAILED
    assert (record.errno_value, record.errno_name) == (12, "ENOMEM")
    assert (record.cause, record.trigger) == (exit_pb2.EXIT_CAUSE_NO_MEMORY, exit_pb2.EXIT_TRIGGER_XSETBV)
    assert (record.old_xcr0, record.new_xcr0) == (1, XCR0_AMX)
    assert record.xfeatures == XTILE_DATA
    assert record.bytes_needed > 8192
    assert (record.state, record.generation, record.attempt) == (exit_pb2.EXIT_STATE_OPEN, 1, 1)
    assert exit_pb2.DECISION_KIND_RETRY in record.allowed_decisions
    assert record.expires_in.seconds > 0


async def test_the_three_causes(world: World) -> None:
    """No memory, a byte limit, no permission: each with its errno and its decisions."""
    quota = await world.vm("b", byte_limit=8000)
    denied = await world.vm("c", permit=False)
    found = {}
    for vm in (quota, denied):
        guest = await world.guest(f"{vm}/vcpus/0")
        (outcome,) = await guest.submit(guest.enable_tiles())
        found[vm] = (await world.exits.GetExit(exit_pb2.GetExitRequest(name=outcome.pending.exit))).exit
    assert (found[quota].errno_name, found[quota].cause) == ("ENOMEM", exit_pb2.EXIT_CAUSE_QUOTA)
    assert exit_pb2.DECISION_KIND_RAISE_LIMIT in found[quota].allowed_decisions
    assert (found[denied].errno_name, found[denied].cause) == ("EPERM", exit_pb2.EXIT_CAUSE_NO_PERMISSION)
    assert exit_pb2.DECISION_KIND_RETRY not in found[denied].allowed_decisions


async def test_a_raised_limit_lets_it_grow(world: World) -> None:
    """RaiseLimit sets the VM's limit and tries again."""
    vm = await world.vm(byte_limit=8000)
    guest = await world.guest(f"{vm}/vcpus/0")
    (outcome,) = await guest.submit(guest.enable_tiles())
    decision = exit_pb2.Decision(raise_limit=exit_pb2.RaiseLimit(bytes=1 << 20))
    resolved = await world.resolve(await world.control(), outcome.pending.exit, decision)
    assert resolved.result == exit_pb2.EXIT_RESULT_COMMITTED


async def test_the_first_decision_of_a_generation_wins(world: World) -> None:
    """The same again is fine; a different second one hears who won."""
    record = await parked(world)
    control = await world.control(name="first")
    first = await world.resolve(control, record.name, GP)
    assert (first.result, first.decided_by) == (exit_pb2.EXIT_RESULT_INJECTED_GP, "first")
    assert (await world.resolve(control, record.name, GP)).result == exit_pb2.EXIT_RESULT_INJECTED_GP
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.resolve(control, record.name, RETRY)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    info = error_info(caught.value)
    assert (info.reason, info.metadata["decidedBy"]) == ("EXIT_ALREADY_RESOLVED", "first")


async def test_a_stale_generation_is_aborted(world: World) -> None:
    """Read it again, then decide again."""
    record = await parked(world)
    control = await world.control()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.resolve(control, record.name, RETRY, generation=7)
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert error_info(caught.value).reason == "EXIT_STALE_GENERATION"


@pytest.mark.parametrize(
    ("decision", "path"),
    [
        pytest.param(exit_pb2.Decision(), "decision", id="no decision"),
        pytest.param(exit_pb2.Decision(retry_after=exit_pb2.RetryAfter()), "decision.retry_after.delay", id="no delay"),
        pytest.param(exit_pb2.Decision(reclaim=exit_pb2.Reclaim()), "decision.reclaim", id="no victim"),
        pytest.param(
            exit_pb2.Decision(reclaim=exit_pb2.Reclaim(victims=["vms/a"])), "decision.reclaim.victims[0]", id="no vCPU"
        ),
        pytest.param(
            exit_pb2.Decision(reclaim=exit_pb2.Reclaim(victims=["vms/a/vcpus/0"] * 257)),
            "decision.reclaim.victims",
            id="too many victims",
        ),
        pytest.param(
            exit_pb2.Decision(raise_limit=exit_pb2.RaiseLimit()), "decision.raise_limit.bytes", id="a limit of nothing"
        ),
    ],
)
async def test_a_malformed_decision_names_the_field(world: World, decision: exit_pb2.Decision, path: str) -> None:
    """Nothing is decided by it."""
    record = await parked(world)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.resolve(await world.control(), record.name, decision)
    assert error_info(caught.value).metadata["field"] == path
    now = await world.exits.GetExit(exit_pb2.GetExitRequest(name=record.name))
    assert now.exit.state == exit_pb2.EXIT_STATE_OPEN


@pytest.mark.parametrize("kind", ["inject_nm", "defer"])
async def test_a_decision_that_is_not_for_the_exit_is_not_allowed(world: World, kind: str) -> None:
    """The exit's allowed_decisions never had it, and the refusal lists what it has."""
    record = await parked(world)
    decision = exit_pb2.Decision()
    getattr(decision, kind).SetInParent()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.resolve(await world.control(), record.name, decision)
    info = error_info(caught.value)
    assert info.reason == "DECISION_NOT_ALLOWED"
    assert "RETRY" in info.metadata["allowed"]


# -- control -----------------------------------------------------------------------------------------------------------


async def test_one_controller_at_a_time(world: World) -> None:
    """A held scope is refused until its lease is over; then it is free, and the old holder is fenced."""
    record = await parked(world)
    first = await world.control(name="first")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.control(name="second")
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert error_info(caught.value).reason == "CONTROL_HELD"
    world.clock.advance(first.lease.seconds)
    second = await world.control(name="second")
    assert second.epoch > first.epoch
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.resolve(first, record.name, RETRY, generation=2)
    assert error_info(caught.value).reason == "CONTROL_FENCED"


async def test_deciding_renews_the_lease(world: World) -> None:
    """A controller that works need not say that it is alive."""
    first, second = await parked(world, "a"), await parked(world, "b")
    control = await world.control()
    world.clock.advance(20)
    await world.resolve(control, first.name, GP)
    world.clock.advance(20)
    assert (await world.resolve(control, second.name, GP, generation=2)).result == exit_pb2.EXIT_RESULT_INJECTED_GP


async def test_releasing_twice_is_fine(world: World) -> None:
    """And the scope is free at once."""
    control = await world.control(name="first")
    request = exit_pb2.ReleaseControlRequest(control=control.control, epoch=control.epoch)
    await world.exits.ReleaseControl(request)
    await world.exits.ReleaseControl(request)
    await world.control(name="second")


async def test_without_a_controller_the_deadline_pauses(world: World) -> None:
    """Never a guess: the vCPU waits, and a later decision is welcome."""
    record = await parked(world)
    world.clock.advance(30)
    paused = (await world.exits.GetExit(exit_pb2.GetExitRequest(name=record.name))).exit
    assert (paused.state, paused.decision) == (exit_pb2.EXIT_STATE_PAUSED, exit_pb2.DECISION_KIND_PAUSE)
    assert (paused.decided_by, paused.generation, paused.HasField("expires_in")) == ("deadline", 2, False)
    resolved = await world.resolve(await world.control(), record.name, RETRY, generation=2)
    assert resolved.result == exit_pb2.EXIT_RESULT_COMMITTED


# -- lists and watchers ------------------------------------------------------------------------------------------------


async def test_exits_are_listed_oldest_first(world: World) -> None:
    """By state and VM, a page at a time."""
    records = [await parked(world, vm_id) for vm_id in ("c", "a", "b")]
    await world.resolve(await world.control(), records[0].name, GP)
    first = await world.exits.ListExits(exit_pb2.ListExitsRequest(page_size=2))
    rest = await world.exits.ListExits(exit_pb2.ListExitsRequest(page_size=2, page_token=first.next_page_token))
    assert [each.name for each in (*first.exits, *rest.exits)] == [record.name for record in records]
    assert rest.next_page_token == ""
    still_open = await world.exits.ListExits(exit_pb2.ListExitsRequest(states=[exit_pb2.EXIT_STATE_OPEN]))
    assert [each.vcpu for each in still_open.exits] == ["vms/a/vcpus/0", "vms/b/vcpus/0"]
    of_one = await world.exits.ListExits(exit_pb2.ListExitsRequest(vm="vms/a"))
    assert [each.vcpu for each in of_one.exits] == ["vms/a/vcpus/0"]


async def test_a_watcher_gets_everything_then_the_changes(world: World) -> None:
    """Unresolved exits, the end of that list, each change, and a bookmark where nothing happens."""
    first = await parked(world, "a")
    stream = world.exits.WatchExits(exit_pb2.WatchExitsRequest())
    assert (await _next(stream, "exit")).exit.name == first.name
    await _next(stream, "initial_list_done")
    second = await parked(world, "b")
    opened = await _next(stream, "exit")
    assert opened.exit.name == second.name
    assert opened.header.revision >= opened.exit.update_revision
    await world.resolve(await world.control(), first.name, GP)
    assert (await _next(stream, "exit")).exit.state == exit_pb2.EXIT_STATE_RESOLVED
    assert (await _read(stream)).WhichOneof("body") == "bookmark"
    stream.cancel()


async def test_a_watcher_that_was_away_misses_no_ending(world: World) -> None:
    """From a revision on, what was resolved meanwhile is told too; a revision from the future is refused."""
    record = await parked(world)
    await world.resolve(await world.control(), record.name, GP)
    request = exit_pb2.WatchExitsRequest(from_revision=record.create_revision)
    stream = world.exits.WatchExits(request)
    assert (await _next(stream, "exit")).exit.state == exit_pb2.EXIT_STATE_RESOLVED
    stream.cancel()
    stream = world.exits.WatchExits(exit_pb2.WatchExitsRequest(from_revision=1_000_000))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _read(stream)
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_watcher_of_one_vm_hears_of_that_one(world: World) -> None:
    """The filter holds for the list and for the changes."""
    await parked(world, "a")
    stream = world.exits.WatchExits(exit_pb2.WatchExitsRequest(vm="vms/b"))
    await _next(stream, "initial_list_done")
    await parked(world, "b")
    assert (await _next(stream, "exit")).exit.vcpu == "vms/b/vcpus/0"
    stream.cancel()


async def test_a_dead_watcher_is_forgotten(world: World) -> None:
    """A cancelled stream leaves no queue behind."""
    stream = world.exits.WatchExits(exit_pb2.WatchExitsRequest())
    await _next(stream, "initial_list_done")
    stream.cancel()
    await asyncio.wait_for(world.server.agent.exit_watchers.empty.wait(), TIMEOUT_S)


async def test_a_slow_watcher_has_to_list_again() -> None:
    """Its queue is bounded; when it is full the stream ends with RESOURCE_EXHAUSTED, and nobody waits for it."""
    watcher = ExitWatcher("", queue_max=2)
    for revision in range(3):
        watcher.push(ExitNews("vms/a", exit_pb2.Exit(name="e"), revision))
    with pytest.raises(Failure) as caught:
        await watcher.next(TIMEOUT_S)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "list again" in caught.value.text


async def _read(stream: Any) -> exit_pb2.WatchExitsResponse:  # noqa: ANN401 -- a call has no public type
    message = await asyncio.wait_for(stream.read(), TIMEOUT_S)
    assert isinstance(message, exit_pb2.WatchExitsResponse), "the stream has ended"
    return message


async def _next(stream: Any, body: str) -> exit_pb2.WatchExitsResponse:  # noqa: ANN401
    """The next message that is no bookmark; it has to be ``body``."""
    while (message := await _read(stream)).WhichOneof("body") == "bookmark":
        pass
    assert message.WhichOneof("body") == body
    return message
