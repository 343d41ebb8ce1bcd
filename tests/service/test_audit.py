"""ListDecisions: the audit on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fpstate.v1 import exit_pb2

from tests.journal.rig import FaultyDisk
from tests.service.test_durable import started
from tests.service.world import World, error_info

pytestmark = pytest.mark.asyncio

RETRY = exit_pb2.Decision(retry=exit_pb2.Retry())
PAUSE = exit_pb2.Decision(pause=exit_pb2.Pause())


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    """A disk."""
    found = FaultyDisk()
    yield found
    found.unregister()


async def decided(world: World, vm_id: str, *decisions: exit_pb2.Decision, reason: str = "") -> str:
    """Park the vCPU of a new VM and decide, one generation after the other; the name of the exit."""
    name = await world.vm(vm_id)
    await world.fail_next_growth(vcpu=f"{name}/vcpus/0")
    guest = await world.guest(f"{name}/vcpus/0", lease_s=3600)
    (outcome,) = await guest.submit(guest.enable_tiles())
    control = await world.control()
    for generation, decision in enumerate(decisions, start=1):
        await world.exits.ResolveExit(
            exit_pb2.ResolveExitRequest(
                name=outcome.pending.exit,
                generation=generation,
                control=control.control,
                control_epoch=control.epoch,
                decision=decision,
                reason=reason,
            )
        )
    return str(outcome.pending.exit)


async def listed(world: World, **filters: Any) -> list[exit_pb2.DecisionRecord]:  # noqa: ANN401
    """The audit, whole."""
    return list((await world.exits.ListDecisions(exit_pb2.ListDecisionsRequest(**filters))).decisions)


async def test_who_when_what_and_why(world: World) -> None:
    """Every field of a record; the principal is the caller's and not what it says of itself."""
    world.clock.advance(86_400)
    exit_name = await decided(world, "a", PAUSE, RETRY, reason="the batch job needs it")
    first, second = await listed(world)
    assert (first.number, second.number) == (1, 2)
    assert (first.principal, first.decided_by, first.reason) == (
        "local/operator/local",
        "test",
        "the batch job needs it",
    )
    assert (first.exit, first.generation, second.generation) == (exit_name, 1, 2)
    assert (first.time.ToJsonString(), first.revision < second.revision) == ("1970-01-02T00:00:00Z", True)
    assert (first.decision, second.decision) == (PAUSE, RETRY)
    assert first.vcpu_uid == (await world.exits.GetExit(exit_pb2.GetExitRequest(name=exit_name))).exit.vcpu_uid
    assert first.cause == exit_pb2.EXIT_CAUSE_NO_MEMORY
    assert (first.state, first.result) == (exit_pb2.EXIT_STATE_PAUSED, exit_pb2.EXIT_RESULT_UNSPECIFIED)
    assert (second.state, second.result) == (exit_pb2.EXIT_STATE_RESOLVED, exit_pb2.EXIT_RESULT_COMMITTED)


async def test_pages_and_filters(world: World) -> None:
    """Oldest first, a page at a time, of one VM, of one exit."""
    first, second = await decided(world, "b", PAUSE, RETRY), await decided(world, "a", RETRY)
    numbers: list[int] = []
    request = exit_pb2.ListDecisionsRequest(page_size=2)
    for _ in range(2):
        page = await world.exits.ListDecisions(request)
        numbers += [each.number for each in page.decisions]
        request.page_token = page.next_page_token
    assert (numbers, request.page_token) == ([1, 2, 3], "")
    assert [each.exit for each in await listed(world, vm="vms/a")] == [second]
    assert [each.number for each in await listed(world, exit=first)] == [1, 2]
    assert await listed(world, vm="vms/a", exit=first) == []


@pytest.mark.parametrize("field", ["vm", "exit"])
async def test_a_filter_that_is_no_name_is_refused(world: World, field: str) -> None:
    """It names the field."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await listed(world, **{field: "nobody"})
    assert error_info(caught.value).metadata["field"] == field


async def test_a_reason_is_bounded(world: World) -> None:
    """512 characters; one more decides nothing."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await decided(world, "a", PAUSE, reason="x" * 513)
    assert error_info(caught.value).metadata["field"] == "reason"
    assert await listed(world) == []
    await decided(world, "b", PAUSE, reason="x" * 512)
    assert [len(each.reason) for each in await listed(world)] == [512]


async def test_whole_decisions(world: World) -> None:
    """A delay and a limit are in it with what they were asked with."""
    later = exit_pb2.Decision(retry_after=exit_pb2.RetryAfter())
    later.retry_after.delay.FromMilliseconds(1500)
    await decided(world, "a", later)
    more = exit_pb2.Decision(raise_limit=exit_pb2.RaiseLimit(bytes=1 << 20, scope=exit_pb2.LIMIT_SCOPE_VM))
    vm = await world.vm("b", byte_limit=8000)
    guest = await world.guest(f"{vm}/vcpus/0")
    (outcome,) = await guest.submit(guest.enable_tiles())
    await world.resolve(await world.control(), outcome.pending.exit, more)
    assert [each.decision for each in await listed(world)] == [later, more]
    assert (await listed(world))[0].state == exit_pb2.EXIT_STATE_APPLYING


async def test_the_audit_survives_a_restart(tmp_path: Path, disk: FaultyDisk) -> None:
    """It is in the journal as everything else; a snapshot has it as well."""
    async with started(tmp_path, disk, snapshot_every=1) as world:
        await decided(world, "a", PAUSE, reason="before")
        before = await listed(world)
    async with started(tmp_path, disk, boot_id="boot-2", snapshot_every=1) as world:
        assert await listed(world) == before
        await decided(world, "b", PAUSE, reason="after")
        assert [(each.number, each.reason) for each in await listed(world)] == [(1, "before"), (2, "after")]
