"""Sessions that go with their VM: what an agent has under way when its VM moves happens once, and it hears of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import pytest_asyncio

from fpstated.client import (
    AsyncVcpuPort,
    Directive,
    Done,
    Gone,
    Hlt,
    Host,
    HostError,
    Incompatible,
    Migrated,
    MigrationCalls,
    RegisterRead,
    RegisterWrite,
    Session,
    VcpuPort,
    abort_migration,
    migrate,
    open_async_session,
    open_session,
)
from fpstated.testing_host import AsyncHostUnderTest, HostUnderTest, async_host, host_on_a_thread
from guest_agent.directive import DirectiveListener
from host_agent.commands import AcquireControl, ResolveExit
from host_agent.exits import Decision, DecisionKind
from host_agent.state import HostConfig, VcpuSide
from tests.service.world import XCR0_AMX

WAIT_S = 60.0
SSE = 1
NAMES = ("vms/a/vcpus/0", "vms/a/vcpus/1")


def config(name: str, **fields: str) -> HostConfig:
    """A host that checks itself."""
    return HostConfig(host=name, boot_id=name, faults=True, check_invariants=True, **fields)  # type: ignore[arg-type]


# -- asyncio -----------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def aio_hosts() -> AsyncIterator[list[AsyncHostUnderTest]]:
    """Three hosts on the test's loop, the VM on the first."""
    async with async_host(config("one")) as one, async_host(config("two")) as two, async_host(config("three")) as three:
        for name in NAMES:
            one.make_vcpu(name, permission=True)
        yield [one, two, three]


async def moved(source: AsyncHostUnderTest, target: AsyncHostUnderTest, vm: str = "vms/a") -> Migrated:
    """Move a VM; the driver blocks, on a thread."""
    return await asyncio.to_thread(migrate, source.address, target.address, vm)


async def parked(host: AsyncHostUnderTest, port: AsyncVcpuPort) -> asyncio.Task[object]:
    """A growth that failed, and who waits for it."""
    host.fail_allocation(vcpu=port.name)
    waiting: asyncio.Task[object] = asyncio.ensure_future(port.xsetbv(XCR0_AMX))
    await host.exit_opened()
    return waiting


def retry(host: AsyncHostUnderTest) -> None:
    """Decide the one exit."""
    (record,) = host.machine.state.exits.values()
    submit = host._server.agent.submit
    control = submit(AcquireControl(scope="", controller="test"))
    submit(
        ResolveExit(
            exit=record.name,
            generation=record.generation,
            control=control.name,
            control_epoch=control.epoch,
            decision=Decision(DecisionKind.RETRY),
        )
    )


@pytest.mark.asyncio
async def test_a_stream_goes_along(aio_hosts: list[AsyncHostUnderTest]) -> None:
    """What waits for a decision, and what was sent meanwhile, is heard at the target, under the same numbers."""
    one, two, _ = aio_hosts
    heard: list[Directive] = []
    async with await open_async_session(one.address, vcpus=NAMES, on_directive=heard.append) as session:
        first, second = map(session.vcpu, NAMES)
        await first.submit(RegisterWrite(SSE, 0, b"first___" * 32))
        waiting = await parked(one, second)
        epoch = session.key
        assert (await moved(one, two)).ownership_epoch == 2
        read = await asyncio.wait_for(first.submit(RegisterRead(SSE, 0, 8)), WAIT_S)
        assert isinstance(read, Done)
        assert read.data == b"first___"
        assert session.key != epoch
        assert not waiting.done()
        retry(two)
        assert isinstance(await asyncio.wait_for(waiting, WAIT_S), Done)
        assert (first.next_seq, second.next_seq) == (3, 2)
        assert {each.kind.value for each in heard} == {"PAUSE", "RESUME"}
    assert "vms/a" not in one.machine.state.vms


@pytest.mark.asyncio
async def test_events_while_the_vm_stands_still(aio_hosts: list[AsyncHostUnderTest]) -> None:
    """They wait, and happen once: at the source where it is aborted, at the target where it is not."""
    one, two, _ = aio_hosts
    async with await open_async_session(one.address, vcpus=NAMES) as session:
        port = session.vcpu(NAMES[0])
        for ends, owner in ((abort_migration, one), (migrate, two)):
            with Host(one.address) as host:
                await asyncio.to_thread(MigrationCalls(host).begin, "vms/a", two.address)
            before = port.next_seq
            events = asyncio.ensure_future(port.submit_all([Hlt()] * 20))
            await asyncio.to_thread(ends, one.address, two.address, "vms/a")
            outcomes = await asyncio.wait_for(events, WAIT_S)
            assert all(isinstance(each, Done) for each in outcomes)
            assert port.next_seq == before + 20
            side = owner.machine.state.vms["vms/a"].kvm.vcpus[0].agent
            assert isinstance(side, VcpuSide)
            assert side.next_seq == before + 20


@pytest.mark.asyncio
async def test_who_sleeps_while_the_vm_moves_twice(aio_hosts: list[AsyncHostUnderTest]) -> None:
    """An agent that was away finds its VM by asking where it was: each host names the next."""
    one, two, three = aio_hosts
    async with await open_async_session(one.address, vcpus=NAMES) as session:
        port = session.vcpu(NAMES[0])
        await port.hlt()
        await moved(one, two)
        await moved(two, three)
        assert isinstance(await asyncio.wait_for(port.hlt(), WAIT_S), Done)
    with pytest.raises(HostError) as caught:
        await open_async_session(one.address, vcpus=NAMES)
    assert (caught.value.reason, caught.value.metadata["target"]) == ("VM_MOVED", two.address)


@pytest.mark.asyncio
async def test_a_session_of_two_vms_stays(aio_hosts: list[AsyncHostUnderTest]) -> None:
    """What has moved is gone for it, with where to; what has not goes on."""
    one, two, _ = aio_hosts
    one.make_vcpu("vms/b/vcpus/0", permission=True)
    heard: list[Directive] = []
    vcpus = [NAMES[0], "vms/b/vcpus/0"]
    async with await open_async_session(one.address, vcpus=vcpus, on_directive=heard.append) as session:
        await moved(one, two)
        gone = await asyncio.wait_for(session.vcpu(NAMES[0]).hlt(), WAIT_S)
        assert isinstance(gone, Gone)
        assert gone.directive.target == two.address
        assert isinstance(await asyncio.wait_for(session.vcpu("vms/b/vcpus/0").hlt(), WAIT_S), Done)
        assert [each.kind.value for each in heard] == ["PAUSE", "MOVED"]


@pytest.mark.asyncio
async def test_a_target_that_cannot_have_it() -> None:
    """The preflight says all of why, nothing is begun, and the guest has not noticed."""
    async with async_host(config("one")) as one, async_host(config("old", default_profile="ice-lake")) as old:
        port = await one.vcpu(NAMES[0])
        with pytest.raises(Incompatible) as caught:
            await moved(one, old)
        assert {each.field for each in caught.value.incompatibilities} == {"xfeatures", "cpuid_features"}
        assert not one.machine.state.migrations
        assert isinstance(await port.hlt(), Done)


@pytest.mark.asyncio
async def test_a_target_without_memory(aio_hosts: list[AsyncHostUnderTest]) -> None:
    """What it finds out when it stages is aborted by the driver, on both; the guest goes on where it was."""
    one, two, _ = aio_hosts
    async with await open_async_session(one.address, vcpus=NAMES) as session:
        port = session.vcpu(NAMES[0])
        (fault,) = two.fail_allocation(nth=2, point="fpstate.guest.alloc")
        with pytest.raises(HostError) as caught:
            await moved(one, two)
        assert caught.value.reason == "ALLOCATION_FAILED"
        assert fault.fired == 1
        assert not any(record.state.open for host in (one, two) for record in host.machine.state.migrations.values())
        assert two.machine.state.allocator.host.used_bytes == 0
        assert isinstance(await asyncio.wait_for(port.hlt(), WAIT_S), Done)


# -- blocking ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hosts() -> Iterator[list[HostUnderTest]]:
    """Two hosts on threads, the VM on the first."""
    with host_on_a_thread(config("one")) as one, host_on_a_thread(config("two")) as two:
        for name in NAMES:
            one.vcpu(name)
        yield [one, two]


@pytest.fixture
def session(hosts: list[HostUnderTest]) -> Iterator[Session]:
    """A session over both vCPUs."""
    with open_session(hosts[0].address, vcpus=NAMES, lease_s=600) as opened:
        yield opened


def test_threads_go_along(hosts: list[HostUnderTest], session: Session) -> None:
    """Each vCPU's thread goes on at the target with its next call, one that waits for a decision too."""
    one, two = hosts
    first, second = map(session.vcpu, NAMES)
    one.fail_allocation(vcpu=NAMES[1])
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(second.xsetbv, XCR0_AMX)
        one.exit_opened()
        migrate(one.address, two.address, "vms/a")
        assert isinstance(first.hlt(), Done)
        two.controller("retry")
        assert isinstance(waiting.result(WAIT_S), Done)
    assert (session.moves, first.next_seq, second.next_seq) == (1, 2, 2)


def test_what_an_earlier_agent_left_pending(hosts: list[HostUnderTest], session: Session) -> None:
    """It is waited for at the target, by who does not know what it was."""
    one, two = hosts
    one.fail_allocation(vcpu=NAMES[1])
    with ThreadPoolExecutor(2) as threads:
        lost = threads.submit(session.vcpu(NAMES[1]).xsetbv, XCR0_AMX)
        one.exit_opened()
        with open_session(one.address, vcpus=NAMES, lease_s=600) as newer:
            port = newer.vcpu(NAMES[1])
            assert port.pending is not None
            waiting = threads.submit(port.wait_pending)
            migrate(one.address, two.address, "vms/a")
            two.controller("retry")
            assert isinstance(waiting.result(WAIT_S), Done)
        with pytest.raises(HostError):
            lost.result(WAIT_S)


def test_a_listener_goes_along(hosts: list[HostUnderTest], session: Session) -> None:
    """It hears the pause, not the move, which the session follows by itself; and then what the target says."""
    one, two = hosts
    heard: list[Directive] = []
    with DirectiveListener(session, heard.append, vcpus=NAMES):
        migrate(one.address, two.address, "vms/a")
        _until(lambda: session.moves == 1)
        with Host(two.address) as host:
            _until(lambda: _attached(two))
            host.reset_vm("vms/a")
            _until(lambda: len([each for each in heard if each.kind.value == "RESET"]) == 2)
    assert "MOVED" not in {each.kind.value for each in heard}


def _attached(host: HostUnderTest) -> bool:
    return host.call(lambda: len(host._host._server.agent.attachments) > 0)


def _until(condition: Callable[[], bool]) -> None:
    """Wait for what has to come, however slow the machine is."""
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_driver_takes_hosts_too(hosts: list[HostUnderTest]) -> None:
    """Connected hosts do, where guests reach the target is said then; a third host is refused."""
    one, two = hosts
    with Host(one.address) as source, Host(Host(two.address).channel) as target:
        with pytest.raises(ValueError, match="target_address"):
            migrate(source, target, "vms/a")
        done = migrate(source, target, "vms/a", target_address=two.address)
        assert (done.vm, done.ownership_epoch, done.source_host) == ("vms/a", 2, "one")
        assert migrate(source, target, "vms/a", target_address=two.address) == done
        with pytest.raises(HostError) as caught:
            migrate(source, one.address, "vms/a")
        assert caught.value.reason == "VM_MOVED"


def test_a_port_waits_while_the_vm_stands_still(hosts: list[HostUnderTest], session: Session) -> None:
    """The blocking call of a vCPU lasts until the VM goes on."""
    one, two = hosts
    port: VcpuPort = session.vcpu(NAMES[0])
    with Host(one.address) as host, ThreadPoolExecutor(1) as threads:
        MigrationCalls(host).begin("vms/a", two.address)
        waiting = threads.submit(port.hlt)
        assert abort_migration(one.address, two.address, "vms/a")
        assert isinstance(waiting.result(WAIT_S), Done)
    assert (session.moves, port.next_seq) == (0, 2)
