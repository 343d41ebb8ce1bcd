"""Directives on the wire: who hears them, when they come again, and which count no more."""

from __future__ import annotations

import grpc
import pytest
from fpstate.v1 import event_pb2, exit_pb2, session_pb2, vm_pb2

from tests.service.world import Guest, World, read

pytestmark = pytest.mark.asyncio

PAUSE = exit_pb2.Decision(pause=exit_pb2.Pause())
RETRY = exit_pb2.Decision(retry=exit_pb2.Retry())
KILL = exit_pb2.Decision(kill_vcpu=exit_pb2.KillVcpu())


async def paused(world: World) -> tuple[Guest, exit_pb2.Exit]:
    """A guest whose vCPU is paused, and its exit."""
    guest = await world.guest(lease_s=3600)
    await world.fail_next_growth()
    (outcome,) = await guest.submit(guest.enable_tiles())
    return guest, await world.resolve(await world.control(), outcome.pending.exit, PAUSE)


async def told(guest: Guest, *, ack: bool = False) -> list[str]:
    """Attach, and return the directives that come; the stream ends in order, so that whatever was to come has come."""
    stream = guest.world.sessions.Attach()
    await stream.write(guest.hello())
    attached = await read(stream)
    assert attached.HasField("attached")
    kinds: list[str] = []
    waiting = guest.world.server.agent.state.sessions[guest.session].directives
    for _ in range(len(waiting)):
        message = await read(stream)
        kinds.append(event_pb2.DirectiveKind.Name(message.directive.kind).removeprefix("DIRECTIVE_KIND_"))
        if ack:
            done = session_pb2.DirectiveAck(id=message.directive.id, vcpu=message.directive.vcpu)
            await stream.write(session_pb2.AttachRequest(directive_ack=done))
    if ack:
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
    stream.cancel()
    return kinds


async def test_a_directive_comes_again_until_it_is_acknowledged(world: World) -> None:
    """On each new stream; after the acknowledgement no more."""
    guest, record = await paused(world)
    assert await told(guest) == ["PAUSE"]
    assert await told(guest) == ["PAUSE"]
    await world.resolve(await world.control(), record.name, KILL, generation=2)
    assert await told(guest, ack=True) == ["STOP"]
    assert await told(guest) == []


async def test_the_latest_of_pause_and_resume_counts(world: World) -> None:
    """Who was away for both hears RESUME alone."""
    guest, record = await paused(world)
    await world.resolve(await world.control(), record.name, RETRY, generation=2)
    assert await told(guest) == ["RESUME"]


async def test_a_new_session_inherits_what_nobody_acknowledged(world: World) -> None:
    """It may be the same VMM, whose session has ended: it would wait for ever."""
    guest, record = await paused(world)
    await world.sessions.CloseSession(session_pb2.CloseSessionRequest(session=guest.session, epoch=guest.epoch))
    await world.resolve(await world.control(), record.name, RETRY, generation=2)
    second = await world.guest(guest.vcpu)
    third = await world.guest(guest.vcpu)
    assert await told(third, ack=True) == ["RESUME"]
    assert not world.server.agent.state.sessions[second.session].directives
    assert await told(third) == []


async def test_a_new_session_is_not_told_of_an_old_reset(world: World) -> None:
    """It begins with the vCPU as it is: the incarnation says how often it was reset."""
    guest, _record = await paused(world)
    await world.vms.ResetVm(vm_pb2.ResetVmRequest(name="vms/a"))
    assert await told(guest) == ["RESET"]
    request = session_pb2.OpenSessionRequest(client_name="test", vcpus=[guest.vcpu])
    opened = await world.sessions.OpenSession(request)
    assert opened.vcpus[0].incarnation == 2
    assert not world.server.agent.state.sessions[opened.session].directives


async def test_a_session_says_what_is_intercepted(world: World) -> None:
    """It may have changed while nobody had the vCPU: a Reclaim intercepts XFD again."""
    guest = await world.guest()
    await guest.submit(guest.event(wrmsr=event_pb2.Wrmsr(msr=0x1C4, value=1 << 18)))
    await guest.submit(guest.enable_tiles(), guest.event(wrmsr=event_pb2.Wrmsr(msr=0x1C4, value=0)))
    (synced,) = await guest.submit(guest.event(xfd_sync=event_pb2.XfdSync(xfd=1 << 18)))
    assert not synced.done.intercepts.xfd_write
    await world.sessions.CloseSession(session_pb2.CloseSessionRequest(session=guest.session, epoch=guest.epoch))
    await world.vm("b")
    other = await world.guest("vms/b/vcpus/0")
    await world.fail_next_growth()
    (outcome,) = await other.submit(other.enable_tiles())
    reclaim = exit_pb2.Decision(reclaim=exit_pb2.Reclaim(victims=[guest.vcpu, "vms/b/vcpus/9"]))
    resolved = await world.resolve(await world.control(), outcome.pending.exit, reclaim)
    assert [(each.vcpu, each.freed_bytes, each.refusal) for each in resolved.reclaimed] == [
        (guest.vcpu, 8192, exit_pb2.VICTIM_REFUSAL_UNSPECIFIED),
        ("vms/b/vcpus/9", 0, exit_pb2.VICTIM_REFUSAL_NOT_FOUND),
    ]
    audit = await world.exits.ListDecisions(exit_pb2.ListDecisionsRequest())
    assert list(audit.decisions[0].reclaimed) == list(resolved.reclaimed)
    opened = await world.sessions.OpenSession(session_pb2.OpenSessionRequest(client_name="test", vcpus=[guest.vcpu]))
    assert opened.vcpus[0].intercepts.xfd_write
