"""Attach: outcomes in order, pending first and final later, and which stream gets them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from fpstate.v1 import event_pb2, exit_pb2, session_pb2, vm_pb2

from host_agent.events import DoneOutcome, Outcome
from host_agent.service.attach_stream import AttachStream
from host_agent.service.errors import Failure
from host_agent.service.limits import OUTBOX_MAX
from tests.service.world import TIMEOUT_S, Guest, World, error_info, read, read_outcomes

pytestmark = pytest.mark.asyncio

RETRY = exit_pb2.Decision(retry=exit_pb2.Retry())


@asynccontextmanager
async def attached(guest: Guest, *vcpus: str) -> AsyncIterator[Any]:
    """A stream whose `hello` was answered; cancelled in the end, since a dropped call is never collected."""
    stream = guest.world.sessions.Attach()
    try:
        await stream.write(guest.hello(*vcpus))
        message = await read(stream)
        assert message.HasField("attached")
        assert message.attached.credits >= 1
        yield stream
    finally:
        stream.cancel()


async def test_growth_on_a_stream(world: World) -> None:
    """A batch in, its outcomes out, with what is durable."""
    guest = await world.guest()
    async with attached(guest) as stream:
        await stream.write(guest.batch(guest.enable_tiles(), guest.event(hlt=event_pb2.Hlt())))
        message = await read(stream)
        grown, halted = message.outcomes.outcomes
        assert grown.done.reallocated.new_bytes > 8192
        assert (halted.seq, halted.WhichOneof("outcome")) == (2, "done")
        assert [(mark.vcpu, mark.seq) for mark in message.outcomes.durable_through] == [(guest.vcpu, 2)]


async def test_hello_is_answered_with_where_to_resume(world: World) -> None:
    """Next number and pending outcome of each vCPU, in the order of `hello`."""
    vm = await world.vm(vcpus=2)
    guest = await world.guest(f"{vm}/vcpus/0", f"{vm}/vcpus/1")
    await world.fail_next_growth(vcpu=f"{vm}/vcpus/1")
    await guest.submit(guest.enable_tiles(), guest.enable_tiles(f"{vm}/vcpus/1"))
    stream = world.sessions.Attach()
    await stream.write(guest.hello(f"{vm}/vcpus/1", f"{vm}/vcpus/0"))
    parked, running = (await read(stream)).attached.vcpus
    stream.cancel()
    assert (parked.vcpu, parked.next_seq, parked.pending.pending.generation) == (f"{vm}/vcpus/1", 2, 1)
    assert (running.vcpu, running.next_seq, running.HasField("pending")) == (f"{vm}/vcpus/0", 2, False)


async def test_pending_first_and_final_later(world: World) -> None:
    """The decision's outcome follows on the stream, without the client asking."""
    guest = await world.guest()
    await world.fail_next_growth()
    control = await world.control()
    async with attached(guest) as stream:
        await stream.write(guest.batch(guest.enable_tiles(), guest.event(hlt=event_pb2.Hlt())))
        pending, blocked = await read_outcomes(stream, 2)
        assert blocked.blocked.exit == pending.pending.exit
        await world.resolve(control, pending.pending.exit, RETRY)
        (final,) = await read_outcomes(stream, 1)
        assert (final.seq, final.done.HasField("reallocated")) == (1, True)


async def test_a_failed_retry_is_pending_anew(world: World) -> None:
    """The next generation is announced, so that whoever looks knows which one waits."""
    guest = await world.guest()
    await world.fail_next_growth(times=2)
    control = await world.control()
    async with attached(guest) as stream:
        await stream.write(guest.batch(guest.enable_tiles()))
        (first,) = await read_outcomes(stream, 1)
        await world.resolve(control, first.pending.exit, RETRY)
        (second,) = await read_outcomes(stream, 1)
        assert second.pending.generation == 2
        await world.resolve(control, first.pending.exit, RETRY, generation=2)
        (final,) = await read_outcomes(stream, 1)
        assert final.HasField("done")


async def test_retry_after_needs_time_alone(world: World) -> None:
    """The delay runs on the host's clock; at its end the instruction executes again."""
    guest = await world.guest(lease_s=600)
    await world.fail_next_growth()
    control = await world.control()
    async with attached(guest) as stream:
        await stream.write(guest.batch(guest.enable_tiles()))
        (pending,) = await read_outcomes(stream, 1)
        decision = exit_pb2.Decision()
        decision.retry_after.delay.seconds = 3
        applying = await world.resolve(control, pending.pending.exit, decision)
        assert applying.state == exit_pb2.EXIT_STATE_APPLYING
        world.clock.advance(3)
        (final,) = await read_outcomes(stream, 1)
        assert final.done.HasField("reallocated")


async def test_pending_comes_before_final_even_from_one_batch(world: World) -> None:
    """INIT settles the event before it: the stream still tells the story in order."""
    guest = await world.guest()
    await world.fail_next_growth()
    async with attached(guest) as stream:
        await stream.write(guest.batch(guest.enable_tiles(), guest.event(init=event_pb2.Init())))
        messages = [await read(stream)]
        while not any(_has_gone(message) for message in messages):
            messages.append(await read(stream))
    told = [
        (outcome.seq, outcome.WhichOneof("outcome")) for message in messages for outcome in message.outcomes.outcomes
    ]
    assert told == [(1, "pending"), (2, "done"), (1, "gone")]


def _has_gone(message: session_pb2.AttachResponse) -> bool:
    return any(outcome.HasField("gone") for outcome in message.outcomes.outcomes)


async def test_the_newest_attachment_gets_the_outcomes(world: World) -> None:
    """An older stream keeps its other vCPUs, and hears nothing more of the one it lost."""
    vm = await world.vm(vcpus=2)
    guest = await world.guest(f"{vm}/vcpus/0", f"{vm}/vcpus/1")
    async with attached(guest) as older, attached(guest, f"{vm}/vcpus/0") as newer:
        await older.write(guest.batch(guest.enable_tiles(), guest.enable_tiles(f"{vm}/vcpus/1")))
        (moved,) = await read_outcomes(newer, 1)
        (kept,) = await read_outcomes(older, 1)
    assert (moved.vcpu, kept.vcpu) == (f"{vm}/vcpus/0", f"{vm}/vcpus/1")


async def test_two_sessions_do_not_hear_each_other(world: World) -> None:
    """Each gets its own vCPU's outcomes, and a fenced one no final outcome of what it lost."""
    vm = await world.vm(vcpus=2)
    first = await world.guest(f"{vm}/vcpus/0")
    second = await world.guest(f"{vm}/vcpus/1")
    await world.fail_next_growth(vcpu=f"{vm}/vcpus/0")
    control = await world.control()
    async with attached(first) as one, attached(second) as two:
        await one.write(first.batch(first.enable_tiles()))
        (pending,) = await read_outcomes(one, 1)
        heir = await world.guest(f"{vm}/vcpus/0")
        async with attached(heir) as three:
            await world.resolve(control, pending.pending.exit, RETRY)
            (final,) = await read_outcomes(three, 1)
        await two.write(second.batch(second.enable_tiles()))
        (other,) = await read_outcomes(two, 1)
        await one.write(first.batch(first.event(hlt=event_pb2.Hlt())))
        (fenced,) = await read_outcomes(one, 1)
    assert final.done.HasField("reallocated")
    assert other.done.HasField("reallocated")
    assert error_info(fenced.rejected).reason == "SESSION_FENCED"


async def test_a_bad_event_never_ends_the_stream(world: World) -> None:
    """It is rejected; the stream goes on."""
    guest = await world.guest()
    async with attached(guest) as stream:
        await stream.write(guest.batch(event_pb2.GuestEvent(vcpu="nobody", seq=1)))
        (rejected,) = await read_outcomes(stream, 1)
        assert error_info(rejected.rejected).reason == "FIELD_INVALID"
        await stream.write(guest.batch(guest.enable_tiles()))
        assert (await read_outcomes(stream, 1))[0].HasField("done")


@pytest.mark.parametrize("first", ["batch", "nothing"])
async def test_the_first_message_is_hello(world: World, first: str) -> None:
    """Anything else ends the stream."""
    guest = await world.guest()
    stream = world.sessions.Attach()
    await stream.write(guest.batch() if first == "batch" else session_pb2.AttachRequest())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(stream)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert dict(error_info(caught.value).metadata) == {"expected": "hello"}


async def test_a_second_hello_ends_the_stream(world: World) -> None:
    """One stream speaks for one session."""
    guest = await world.guest()
    async with attached(guest) as stream:
        await stream.write(guest.hello())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read(stream)
    assert error_info(caught.value).reason == "ATTACH_OUT_OF_ORDER"


async def test_hello_may_name_the_sessions_vcpus_only(world: World) -> None:
    """A vCPU of somebody else is refused."""
    guest = await world.guest()
    stream = world.sessions.Attach()
    await stream.write(guest.hello("vms/a/vcpus/1"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(stream)
    assert error_info(caught.value).reason == "VCPU_NOT_IN_SESSION"


async def test_a_client_that_has_said_all_still_hears_the_end(world: World) -> None:
    """After done_writing the stream lasts until nothing is pending, and then ends well."""
    guest = await world.guest()
    await world.fail_next_growth()
    control = await world.control()
    async with attached(guest) as stream:
        await stream.write(guest.batch(guest.enable_tiles()))
        await stream.done_writing()
        (pending,) = await read_outcomes(stream, 1)
        await world.resolve(control, pending.pending.exit, RETRY)
        assert (await read_outcomes(stream, 1))[0].HasField("done")
        assert await asyncio.wait_for(stream.read(), TIMEOUT_S) is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_lease_that_ends_ends_the_stream(world: World) -> None:
    """The client opens a new session; nothing of the vCPU is lost."""
    guest = await world.guest(lease_s=5)
    async with attached(guest) as stream:
        world.clock.advance(5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read(stream)
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert error_info(caught.value).reason == "SESSION_EXPIRED"


async def test_closing_the_session_ends_its_streams(world: World) -> None:
    """With OK: it is what the client wanted."""
    guest = await world.guest()
    async with attached(guest) as stream:
        request = session_pb2.CloseSessionRequest(session=guest.session, epoch=guest.epoch)
        await world.sessions.CloseSession(request)
        assert await asyncio.wait_for(stream.read(), TIMEOUT_S) is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_directive_comes_until_it_is_acknowledged(world: World) -> None:
    """On the stream at once, and again on the next stream."""
    guest = await world.guest()
    async with attached(guest) as stream:
        await world.vms.ResetVm(vm_pb2.ResetVmRequest(name="vms/a"))
        directive = (await read(stream)).directive
        assert (directive.vcpu, directive.kind) == (guest.vcpu, event_pb2.DIRECTIVE_KIND_RESET)
    async with attached(guest) as stream:
        again = (await read(stream)).directive
        assert again == directive
        ack = session_pb2.DirectiveAck(id=directive.id, vcpu=guest.vcpu)
        await stream.write(session_pb2.AttachRequest(directive_ack=ack))
        await stream.write(guest.batch(guest.enable_tiles()))
        assert (await read_outcomes(stream, 1))[0].HasField("done")
    async with attached(guest) as stream:
        await stream.write(guest.batch(guest.event(hlt=event_pb2.Hlt())))
        assert (await read_outcomes(stream, 1))[0].HasField("done")


async def test_a_client_that_does_not_read_is_given_up(world: World) -> None:
    """What waits to be written is bounded; the stream ends with RESOURCE_EXHAUSTED, after what it already has."""
    guest = await world.guest()
    stream = AttachStream(world.server.agent, guest.hello().hello)
    outcome = Outcome(guest.vcpu, 1, DoneOutcome())
    for _ in range(OUTBOX_MAX + 1):
        stream.push(outcome)
    told = 0

    async def read_all() -> None:
        nonlocal told
        async for message in stream.responses():
            told += len(message.outcomes.outcomes)

    with pytest.raises(Failure) as caught:
        await read_all()
    assert told == OUTBOX_MAX
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_stream_that_was_dropped_takes_nothing_with_it(world: World) -> None:
    """The host forgets the stream; the pending event goes on, and its outcome waits for whoever asks."""
    guest = await world.guest()
    await world.fail_next_growth()
    control = await world.control()
    async with attached(guest) as stream:
        await stream.write(guest.batch(guest.enable_tiles()))
        (pending,) = await read_outcomes(stream, 1)
    await asyncio.wait_for(world.server.agent.attachments.empty.wait(), TIMEOUT_S)
    await world.resolve(control, pending.pending.exit, RETRY)
    request = session_pb2.WaitOutcomeRequest(session=guest.session, epoch=guest.epoch, vcpu=guest.vcpu, seq=1)
    assert (await world.sessions.WaitOutcome(request)).outcome.HasField("done")


def expanded(outcomes: session_pb2.Outcomes) -> dict[tuple[str, int], event_pb2.EventOutcome]:
    """Outcomes by vCPU and number, each event of a run with its own."""
    found = {(each.vcpu, each.seq): each for each in outcomes.outcomes}
    for run in outcomes.done_runs:
        for seq in range(run.first_seq, run.last_seq + 1):
            assert (run.vcpu, seq) not in found
            done = event_pb2.Done(skip_instruction=True, intercepts=run.intercepts)
            found[run.vcpu, seq] = event_pb2.EventOutcome(vcpu=run.vcpu, seq=seq, done=done)
    return found


async def test_what_has_nothing_to_say_goes_in_runs(world: World) -> None:
    """For who asks: the same outcomes, fewer messages. A value, a growth, new intercepts end a run; so does a gap."""
    vm = await world.vm(vcpus=2)
    a, b = f"{vm}/vcpus/0", f"{vm}/vcpus/1"
    guest = await world.guest(a, b)
    wrmsr = event_pb2.Wrmsr(msr=0x1C4)
    events = [
        *(guest.event(a, wrmsr=wrmsr), guest.event(b, wrmsr=wrmsr), guest.event(a, wrmsr=wrmsr)),
        *(guest.event(a, rdmsr=event_pb2.Rdmsr(msr=0x1C4)), guest.event(a, hlt=event_pb2.Hlt())),
        *(guest.enable_tiles(a), guest.event(a, wrmsr=event_pb2.Wrmsr(msr=0x1C4, value=1 << 18))),
        *(guest.event(a, hlt=event_pb2.Hlt()), guest.event(b, wrmsr=wrmsr)),
    ]
    hello = guest.hello()
    hello.hello.done_runs = True
    stream = world.sessions.Attach()
    try:
        await stream.write(hello)
        await read(stream)
        await stream.write(guest.batch(*events))
        outcomes = (await read(stream)).outcomes
    finally:
        stream.cancel()
    assert [(run.vcpu, run.first_seq, run.last_seq) for run in outcomes.done_runs] == [
        (a, 1, 2),
        (b, 1, 2),
        (a, 4, 4),
        (a, 6, 7),
    ]
    assert [(each.vcpu, each.seq) for each in outcomes.outcomes] == [(a, 3), (a, 5)]
    again = await guest.submit(*events)
    assert expanded(outcomes) == {(each.vcpu, each.seq): each for each in again}
