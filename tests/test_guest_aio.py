"""The asyncio session against a real host: one stream, many events under way, the same numbers after a cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from fpstate.fault.v1 import fault_pb2
from fpstate.v1 import exit_pb2, exit_pb2_grpc

from fpstated.client import (
    AsyncHost,
    AsyncSession,
    AsyncVcpuPort,
    Directive,
    DirectiveKind,
    Done,
    EventRejected,
    Gone,
    GuestEvent,
    Hlt,
    HostError,
    Injected,
    PendingEvent,
    Rdmsr,
    RegisterRead,
    RegisterWrite,
    Rejected,
    SessionLost,
    Wrmsr,
    Xsetbv,
    connect_async,
    open_async_session,
)
from fpstated.testing_host import AsyncHostUnderTest, async_host
from host_agent.service.clock import ManualClock
from host_agent.state import HostConfig

XFD, XFD_ERR = 0x1C4, 0x1C5
XTILE_DATA = 1 << 18
XCR0_WITH_TILES = 0x602E7
ENOMEM = 12
REALLOC = "fpstate.realloc.alloc"
VCPU = "vms/a/vcpus/0"


@pytest_asyncio.fixture
async def server() -> AsyncIterator[AsyncHostUnderTest]:
    """A host on the test's own loop, with faults, checking every invariant after every command."""
    async with async_host(HostConfig(faults=True, check_invariants=True)) as running:
        yield running


@pytest_asyncio.fixture
async def host(server: AsyncHostUnderTest) -> AsyncIterator[AsyncHost]:
    """The client of that host; tests that only need its VM `a` with two vCPUs, which may use tiles, ask for it too."""
    async with connect_async(server.address) as client:
        await client.create_vm("a")
        await client.request_permission("vms/a")
        for index in (0, 1):
            await client.create_vcpu("vms/a", index=index)
        yield client


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something another task brings about; the test's own timeout ends a wait in vain."""
    while not condition():  # noqa: ASYNC110 -- what is waited for is in the host, which has no event for it
        await asyncio.sleep(0.002)


async def decide(host: AsyncHost, exit_name: str, decision: exit_pb2.Decision) -> None:
    """Decide an exit as a controller of its VM would."""
    stub = exit_pb2_grpc.ExitServiceStub(host.channel)
    record = (await stub.GetExit(exit_pb2.GetExitRequest(name=exit_name), timeout=60)).exit
    scope = exit_name.partition("/vcpus/")[0]
    control = await stub.AcquireControl(exit_pb2.AcquireControlRequest(scope=scope, controller_name="test"), timeout=60)
    request = exit_pb2.ResolveExitRequest(
        name=exit_name,
        generation=record.generation,
        control=control.control,
        control_epoch=control.epoch,
        decision=decision,
    )
    await stub.ResolveExit(request, timeout=60)
    release = exit_pb2.ReleaseControlRequest(control=control.control, epoch=control.epoch)
    await stub.ReleaseControl(release, timeout=60)


async def park(host: AsyncHost, port: AsyncVcpuPort) -> tuple[asyncio.Task[object], PendingEvent]:
    """Let the port's next growth fail, begin it in a task, and wait until the vCPU is parked."""
    await host.arm_fault(REALLOC, errno=ENOMEM, vcpu=port.name, fail_nth=1)
    parked: list[PendingEvent] = []
    port.on_pending = parked.append
    waiting: asyncio.Task[object] = asyncio.create_task(port.xsetbv(XCR0_WITH_TILES))
    await until(lambda: bool(parked))
    return waiting, parked[0]


@asynccontextmanager
async def opened(address: str, *names: str) -> AsyncIterator[AsyncSession]:
    """A session over vCPUs, the first one unless named."""
    async with await open_async_session(address, vcpus=names or [VCPU], client_name="test") as session:
        yield session


# ---- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_batch_has_one_outcome_for_each_event(server: AsyncHostUnderTest, host: AsyncHost) -> None:
    """In order, a mistake and an exception among them, and none keeps those behind it from happening."""
    events: list[GuestEvent] = [
        Xsetbv(7), Xsetbv(4), Wrmsr(0x123, 0), RegisterWrite(2, 0, b""), RegisterWrite(2, 0, b"ok"),
        RegisterRead(2, 0, 2), Rdmsr(XFD), Hlt(),
    ]  # fmt: skip
    async with opened(server.address) as session:
        outcomes = await session.vcpu(VCPU).submit_all(events)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [Done, Injected, Rejected, Rejected, Done, Done, Done, Done]
    assert isinstance(read := outcomes[5], Done)
    assert read.data == b"ok"
    assert (await host.get_vcpu(VCPU)).next_seq in (8, 9)  # a malformed event may or may not use its number up


@pytest.mark.asyncio
@pytest.mark.usefixtures("host")
async def test_two_thousand_events_in_one_call(server: AsyncHostUnderTest) -> None:
    """They go out in messages of a bearable size, and each is answered."""
    async with opened(server.address) as session:
        outcomes = await session.vcpu(VCPU).submit_all([Rdmsr(XFD)] * 2000)
        assert all(isinstance(outcome, Done) and outcome.value == 0 for outcome in outcomes)
        assert session.vcpu(VCPU).next_seq == 2001


@pytest.mark.asyncio
@pytest.mark.usefixtures("host")
async def test_many_tasks_share_one_port(server: AsyncHostUnderTest) -> None:
    """Each gets its own outcome, in the order in which they asked."""
    async with opened(server.address) as session:
        port = session.vcpu(VCPU)
        await port.xsetbv(7)
        writes = [port.write_register(2, offset=n, data=bytes([n])) for n in range(64)]
        await asyncio.gather(*writes)
        assert isinstance(read := await port.read_register(2, length=64), Done)
        assert read.data == bytes(range(64))


@pytest.mark.asyncio
@pytest.mark.usefixtures("host")
async def test_a_mistake_is_raised_for_a_single_event(server: AsyncHostUnderTest) -> None:
    """With the reason, and the number it had."""
    async with opened(server.address) as session:
        with pytest.raises(EventRejected, match="FIELD_INVALID") as caught:
            await session.vcpu(VCPU).wrmsr(0x123, value=0)
        assert caught.value.seq == 1
        with pytest.raises(ValueError, match="out of range"):
            await session.vcpu(VCPU).xsetbv(1 << 64)


@pytest.mark.timeout(400)
@pytest.mark.asyncio
async def test_no_more_events_are_under_way_than_there_are_credits(server: AsyncHostUnderTest, host: AsyncHost) -> None:
    """Five thousand events at once are more than a host grants, and none is refused for it."""
    most = 0
    async with opened(server.address) as session:
        port = session.vcpu(VCPU)

        def note(_step: object) -> None:
            nonlocal most
            most = max(most, port.under_way)

        port.on_step = note
        outcomes = await port.submit_all([Rdmsr(XFD)] * 5_000)
    assert all(isinstance(outcome, Done) for outcome in outcomes)
    assert 0 < most <= (await host.info()).limits.credits_max


# ---- parked ----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_what_is_behind_a_pending_event_waits_its_turn(server: AsyncHostUnderTest, host: AsyncHost) -> None:
    """The batch goes on by itself after the decision, in order and under the next numbers."""
    async with opened(server.address) as session:
        port = session.vcpu(VCPU)
        await host.arm_fault(REALLOC, errno=ENOMEM, vcpu=VCPU, fail_nth=1)
        events: list[GuestEvent] = [Xsetbv(XCR0_WITH_TILES), RegisterWrite(2, 0, b"after"), RegisterRead(2, 0, 5)]
        waiting = asyncio.create_task(port.submit_all(events))
        await until(lambda: port.pending is not None and bool(port.pending.pending.exit))
        later = asyncio.create_task(port.hlt())
        assert port.pending is not None
        await decide(host, port.pending.pending.exit, exit_pb2.Decision(retry=exit_pb2.Retry()))
        grown, written, read = await waiting
        assert isinstance(grown, Done)
        assert grown.reallocated is not None
        assert isinstance(written, Done)
        assert isinstance(read, Done)
        assert read.data == b"after"
        assert isinstance(await later, Done)
        assert port.next_seq == 5


@pytest.mark.asyncio
async def test_a_killed_vcpu_takes_what_is_behind_along(server: AsyncHostUnderTest, host: AsyncHost) -> None:
    """What had not happened does not happen, and says why."""
    async with opened(server.address) as session:
        port = session.vcpu(VCPU)
        waiting, parked = await park(host, port)
        behind = asyncio.create_task(port.submit_all([Rdmsr(XFD), Hlt()]))
        await decide(host, parked.pending.exit, exit_pb2.Decision(kill_vcpu=exit_pb2.KillVcpu()))
        assert isinstance(await waiting, Gone)
        assert [type(outcome) for outcome in await behind] == [Gone, Gone]


@pytest.mark.asyncio
async def test_init_overtakes_what_waits(server: AsyncHostUnderTest, host: AsyncHost) -> None:
    """It has the number behind the pending event, which it cancels, and what waited goes with that."""
    async with opened(server.address) as session:
        port = session.vcpu(VCPU)
        waiting, _parked = await park(host, port)
        behind = asyncio.create_task(port.rdmsr(XFD))
        await asyncio.sleep(0)
        assert isinstance(await port.init(), Done)
        assert isinstance(await waiting, Gone)
        assert isinstance(await behind, Gone)
        assert isinstance(await port.hlt(), Done)
        assert port.next_seq == 4


@pytest.mark.asyncio
async def test_a_wait_that_is_given_up_does_not_hurt_the_session(server: AsyncHostUnderTest, host: AsyncHost) -> None:
    """A timeout ends the wait alone: the stream goes on, and the outcome can be waited for again."""
    async with opened(server.address, VCPU, "vms/a/vcpus/1") as session:
        port, other = session.vcpu(VCPU), session.vcpu("vms/a/vcpus/1")
        waiting, parked = await park(host, port)
        waiting.cancel()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(port.wait_pending(), 0.02)
        assert isinstance(await other.rdmsr(XFD), Done)
        await decide(host, parked.pending.exit, exit_pb2.Decision(inject_gp=exit_pb2.InjectGp()))
        await until(lambda: port.pending is None)
        assert isinstance(await port.hlt(), Done)


@pytest.mark.asyncio
async def test_an_event_that_was_not_sent_is_taken_back(server: AsyncHostUnderTest, host: AsyncHost) -> None:
    """Cancelled while it waits behind a pending one, it never happens and uses no number."""
    async with opened(server.address) as session:
        port = session.vcpu(VCPU)
        waiting, parked = await park(host, port)
        behind = asyncio.create_task(port.xsetbv(7))
        await asyncio.sleep(0)
        behind.cancel()
        await decide(host, parked.pending.exit, exit_pb2.Decision(retry=exit_pb2.Retry()))
        await waiting
        await port.hlt()
        assert (await host.get_vcpu(VCPU)).xcr0 == XCR0_WITH_TILES
        assert port.next_seq == 3


# ---- the session -----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_directive_is_carried_out_once_and_acknowledged(server: AsyncHostUnderTest, host: AsyncHost) -> None:
    """A coroutine is awaited before the host hears that it is done."""
    carried_out: list[Directive] = []

    async def carry_out(directive: Directive) -> None:
        await asyncio.sleep(0)
        carried_out.append(directive)

    names = [VCPU, "vms/a/vcpus/1"]
    async with await open_async_session(server.address, vcpus=names, on_directive=carry_out) as session:
        waiting, parked = await park(host, session.vcpu(VCPU))
        await decide(host, parked.pending.exit, exit_pb2.Decision(kill_vm=exit_pb2.KillVm()))
        await waiting
        record = server.machine.state.sessions[session.key.name]
        await until(lambda: len(carried_out) == 2 and not record.directives)
    assert {(each.vcpu, each.kind) for each in carried_out} == {(name, DirectiveKind.STOP) for name in names}


@pytest.mark.asyncio
async def test_a_pause_is_the_sessions_to_carry_out(server: AsyncHostUnderTest, host: AsyncHost) -> None:
    """PAUSE and RESUME are acknowledged without anybody's help, and leave the port as the host wants it."""
    async with opened(server.address) as session:
        port = session.vcpu(VCPU)
        waiting, parked = await park(host, port)
        await decide(host, parked.pending.exit, exit_pb2.Decision(pause=exit_pb2.Pause()))
        record = server.machine.state.sessions[session.key.name]
        await until(lambda: port.paused and not record.directives)
        await decide(host, parked.pending.exit, exit_pb2.Decision(inject_gp=exit_pb2.InjectGp()))
        assert await waiting == Injected(13, error_code=0)
        await until(lambda: not port.paused and not record.directives)
        assert isinstance(await port.hlt(), Done)


@pytest.mark.asyncio
async def test_nothing_of_a_paused_vcpu_is_sent(server: AsyncHostUnderTest, host: AsyncHost) -> None:
    """What is submitted waits for RESUME; the other vCPUs of the session go on."""
    names = [VCPU, "vms/a/vcpus/1"]
    async with await open_async_session(server.address, vcpus=names) as session:
        port = session.vcpu(VCPU)
        port.paused = True
        waiting = asyncio.create_task(port.xsetbv(7))
        assert isinstance(await session.vcpu(names[1]).xsetbv(7), Done)
        assert (await host.get_vcpu(VCPU)).xcr0 == 1
        assert not waiting.done()
        port.paused = False
        port.pump()
        assert isinstance(await waiting, Done)


@pytest.mark.asyncio
async def test_a_new_agent_waits_for_what_the_old_one_left(server: AsyncHostUnderTest, host: AsyncHost) -> None:
    """The session says what pends; its outcome comes on the new stream."""
    async with opened(server.address) as first:
        waiting, parked = await park(host, first.vcpu(VCPU))
    with pytest.raises(SessionLost, match="closed by its owner"):
        await waiting
    async with opened(server.address) as second:
        port = second.vcpu(VCPU)
        assert port.pending == PendingEvent(1, None, parked.pending)
        behind = asyncio.create_task(port.hlt())
        await decide(host, parked.pending.exit, exit_pb2.Decision(inject_gp=exit_pb2.InjectGp()))
        assert await port.wait_pending() == Injected(13, error_code=0)
        assert isinstance(await behind, Done)


@pytest.mark.asyncio
async def test_a_session_that_was_taken_over_is_told(server: AsyncHostUnderTest, host: AsyncHost) -> None:
    """What the older agent sends from then on is refused, and changes nothing."""
    async with opened(server.address) as first, opened(server.address) as second:
        assert isinstance(await second.vcpu(VCPU).xsetbv(7), Done)
        with pytest.raises((HostError, SessionLost)):
            await first.vcpu(VCPU).xsetbv(1)
        assert (await host.get_vcpu(VCPU)).xcr0 == 7


@pytest.mark.asyncio
async def test_a_lease_that_is_renewed_does_not_end() -> None:
    """A session that says nothing for several leases of the host's clock is still the same one."""
    clock = ManualClock()
    async with async_host(HostConfig(), clock) as server:
        server.make_vcpu(VCPU, permission=False)
        async with await open_async_session(server.address, vcpus=[VCPU], lease_s=0.3) as session:
            before, record = session.key, server.machine.state.sessions[session.key.name]
            for _ in range(5):
                server.advance(0.2)
                await until(lambda: record.expires_ns == clock.now_ns() + record.lease_ns)
            await session.vcpu(VCPU).hlt()
            assert session.key == before


@pytest.mark.asyncio
@pytest.mark.usefixtures("host")
async def test_a_session_is_not_opened_half(server: AsyncHostUnderTest, tmp_path: Path) -> None:
    """Refused or unreachable, it leaves nothing open."""
    with pytest.raises(HostError, match="VCPU_NOT_FOUND"):
        await open_async_session(server.address, vcpus=["vms/none/vcpus/0"])
    with pytest.raises(HostError) as caught:
        await open_async_session(f"unix:{tmp_path}/h", vcpus=[VCPU])
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert not [task for task in asyncio.all_tasks() if "AsyncSession" in str(task.get_coro())]


@pytest.mark.asyncio
async def test_the_hosts_calls(host: AsyncHost) -> None:
    """The same calls as the blocking client has."""
    assert [vm.name for vm in await host.list_vms()] == ["vms/a"]
    assert [vcpu.name for vcpu in await host.list_vcpus("vms/a")] == [VCPU, "vms/a/vcpus/1"]
    fault = await host.arm_fault(REALLOC, errno=ENOMEM, times=1)
    assert [each.name for each in await host.list_faults()] == [fault.name]
    assert (await host.disarm_fault(fault.name)).name == fault.name
    await host.arm_fault("mine.write", errno=ENOMEM, owner="me", lease_s=60.0)
    answer = await host.evaluate("mine.write", fault_pb2.FaultScope(vm="vms/a"))
    assert answer is not None
    assert answer.errno_action.errno_value == ENOMEM
    assert await host.renew_faults("me") == 1
    assert [each.hits for each in await host.reset_faults()] == [1]
    assert await host.evaluate("mine.write") is None
    assert (await host.reset_vm("vms/a")).name == "vms/a"
    assert (await host.get_permission("vms/a")).locked
    assert (await host.set_altstack("vms/a/tasks/main", 4096)).altstack_bytes == 4096
    assert await host.list_exits() == []
    supported = await host.get_supported_cpuid("vms/a")
    assert await host.set_cpuid("vms/a", table=supported.cpuid.entries) == supported.xcomp_guest_supp
    assert await host.set_cpuid("vms/a", xcr0_mask=0x2E7, vcpu=VCPU) == 0x2E7
    await host.delete_vcpu(VCPU)
    await host.delete_vm("vms/a", force=True)
    with pytest.raises(HostError, match="VM_NOT_FOUND"):
        await host.get_vm("vms/a")
