"""A host with a state directory: nothing that knows of a command leaves before the command is on the disk."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from fpstate.v1 import event_pb2, exit_pb2, host_pb2, session_pb2, vm_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guest_agent.aio import open_async_session
from host_agent.capabilities import capabilities
from host_agent.errors import Refused
from host_agent.journal.backup import back_up, restore
from host_agent.journal.durable import DurableJournal
from host_agent.journal.errors import DirectoryInUseError
from host_agent.journal.inspection import verify
from host_agent.journal.journal import JournalOptions
from host_agent.journal.recovery import recover
from host_agent.journal.snapshot import snapshots
from host_agent.journal.store import Store
from host_agent.service.address import AddressError
from host_agent.service.clock import ManualClock
from host_agent.service.options import ServerOptions
from host_agent.service.server import HostServer
from host_agent.state import HostConfig
from tests.journal.rig import FaultyDisk
from tests.service.world import TIMEOUT_S, XCR0_AMX, World, error_info, read, read_outcomes, settled

CONFIG = HostConfig(host="test-host", boot_id="boot-1", faults=True, check_invariants=True)
RETRY = exit_pb2.Decision(retry=exit_pb2.Retry())


@asynccontextmanager
async def started(
    folder: Path,
    disk: FaultyDisk,
    boot_id: str = "boot-1",
    address: str = "",
    snapshot_every: int = 50_000,
    server_options: ServerOptions | None = None,
    **changes: object,
) -> AsyncIterator[World]:
    """A host on the state directory of a folder, until the end of the block."""
    config = replace(CONFIG, boot_id=boot_id, **changes)  # type: ignore[arg-type]
    options = JournalOptions(
        directory=folder / "state", snapshot_every=snapshot_every, history=5, vfs=disk.name, probe_interval_s=0.01
    )
    clock = ManualClock()
    address = address or f"unix:{folder}/host.sock"
    async with (
        HostServer(
            config, address, options=server_options, clock=clock, bookmark_interval_s=60, journal=options
        ) as server,
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        yield World(server, clock, channel)


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    """A disk that fails on demand."""
    faulty = FaultyDisk()
    yield faulty
    faulty.unregister()


@pytest_asyncio.fixture
async def durable(tmp_path: Path, disk: FaultyDisk) -> AsyncIterator[World]:
    """A host with a state directory on that disk."""
    async with started(tmp_path, disk) as world:
        yield world


def journal_of(world: World) -> DurableJournal:
    """What the host holds of its journal."""
    found = world.server.agent.journal
    assert isinstance(found, DurableJournal)
    return found


def metric(world: World, name: str, **labels: str) -> float | None:
    """What a scrape would show."""
    return world.server.metrics.registry.get_sample_value(name, labels)


class Held:
    """A disk that takes its time: no commit begins before ``free`` is called."""

    def __init__(self, world: World) -> None:
        self._free = threading.Event()
        self._busy = threading.Event()
        journal_of(world)._writer.run(self._hold)

    def _hold(self, _store: Store) -> None:
        self._busy.set()
        self._free.wait(TIMEOUT_S)

    async def taken(self) -> None:
        """Wait until the writer is held."""
        await asyncio.to_thread(self._busy.wait, TIMEOUT_S)

    def free(self) -> None:
        """Let the commits go on."""
        self._free.set()


def waiting(world: World) -> int:
    """How many answers and messages wait for the disk."""
    return len(journal_of(world)._waiting)


async def waits(world: World, call: Awaitable[Any]) -> asyncio.Future[Any]:
    """A call whose answer is made, and waits for the disk: one that is held, so that nothing is let go meanwhile."""
    before = waiting(world)
    answer = asyncio.ensure_future(call)
    await settled(lambda: answer.done() or waiting(world) > before)
    assert not answer.done(), f"it was answered: {answer}"
    return answer


def get_vm(world: World, name: str) -> Awaitable[vm_pb2.GetVmResponse]:
    """GetVm."""
    answer: Awaitable[vm_pb2.GetVmResponse] = world.vms.GetVm(vm_pb2.GetVmRequest(name=name), timeout=TIMEOUT_S)
    return answer


def create_vm(world: World, vm_id: str, request_id: str = "") -> Awaitable[vm_pb2.CreateVmResponse]:
    """CreateVm."""
    request = vm_pb2.CreateVmRequest(vm_id=vm_id, vm=vm_pb2.Vm(), request_id=request_id)
    answer: Awaitable[vm_pb2.CreateVmResponse] = world.vms.CreateVm(request, timeout=TIMEOUT_S)
    return answer


async def assert_recovers(world: World) -> None:
    """What is on the disk, as soon as all of it is, is this host."""
    journal = journal_of(world)
    await journal.settled(journal.generation)
    with Store(journal._options.directory, write=False) as store:
        assert recover(store, CONFIG).machine.digest() == world.server.agent.machine.digest()


# -- released when durable ---------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_reply_waits_for_its_commit(durable: World) -> None:
    """The machine has done it; the caller does not hear of it before the disk has."""
    held = Held(durable)
    await held.taken()
    answer = await waits(durable, create_vm(durable, "a"))
    assert "vms/a" in durable.server.agent.state.vms
    held.free()
    assert (await answer).vm.name == "vms/a"
    await assert_recovers(durable)


@pytest.mark.asyncio
async def test_a_read_waits_for_what_it_shows(durable: World) -> None:
    """Single reads, lists, the host's figures, and a refusal that stands on what is not durable yet."""
    held = Held(durable)
    await held.taken()
    made = await waits(durable, create_vm(durable, "a"))
    reads = [
        await waits(durable, get_vm(durable, "vms/a")),
        await waits(durable, durable.vms.ListVms(vm_pb2.ListVmsRequest())),
        await waits(durable, durable.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())),
    ]
    again = await waits(durable, create_vm(durable, "a"))
    held.free()
    await asyncio.gather(made, *reads)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await again
    assert error_info(refused.value).reason == "VM_EXISTS"


@pytest.mark.asyncio
async def test_a_refusal_of_whoever_calls_waits_as_well(tmp_path: Path, disk: FaultyDisk) -> None:
    """Access and limits look into the machine, so what they say may know of it; health knows nothing, and passes."""
    guest = ServerOptions(socket_identity="guest/g")
    async with started(tmp_path, disk, server_options=guest) as world:
        held = Held(world)
        await held.taken()
        made = await waits(world, create_vm(world, "g"))
        stranger = await waits(world, get_vm(world, "vms/other"))
        drain = await waits(world, world.hosts.DrainHost(host_pb2.DrainHostRequest()))
        async with grpc.aio.insecure_channel(world.server.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(service="fpstate.v1.VmService"), timeout=TIMEOUT_S)
        held.free()
        assert (await made).vm.name == "vms/g"
        for call, reason in ((stranger, "NOT_OWNER"), (drain, "ROLE_NOT_ALLOWED")):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert error_info(refused.value).reason == reason


@pytest.mark.asyncio
async def test_streams_wait_too(durable: World) -> None:
    """Outcomes with what they say is durable, and the news of an exit."""
    guest = await durable.guest()
    watch = durable.exits.WatchExits(exit_pb2.WatchExitsRequest())
    first = await watch.read()
    assert isinstance(first, exit_pb2.WatchExitsResponse)
    assert first.HasField("initial_list_done")
    stream = durable.sessions.Attach()
    await stream.write(guest.hello())
    assert (await read(stream)).HasField("attached")
    await durable.fail_next_growth()
    held = Held(durable)
    await held.taken()
    await stream.write(guest.batch(guest.enable_tiles()))
    outcomes: asyncio.Future[Any] = asyncio.ensure_future(stream.read())
    news: asyncio.Future[Any] = asyncio.ensure_future(watch.read())
    await settled(lambda: waiting(durable) == 2)
    assert not outcomes.done()
    assert not news.done()
    held.free()
    told = (await outcomes).outcomes
    assert told.outcomes[0].HasField("pending")
    assert [(mark.vcpu, mark.seq) for mark in told.durable_through] == [(guest.vcpu, 1)]
    assert (await news).exit.vcpu == guest.vcpu
    stream.cancel()
    watch.cancel()


@pytest.mark.asyncio
async def test_an_abandoned_call_holds_nothing_up(durable: World) -> None:
    """Its caller has gone while it waited; the others get their answers, and the command stands."""
    held = Held(durable)
    await held.taken()
    abandoned = durable.vms.CreateVm(vm_pb2.CreateVmRequest(vm_id="a", vm=vm_pb2.Vm()))
    await waits(durable, abandoned)
    abandoned.cancel()
    other = await waits(durable, create_vm(durable, "b"))
    held.free()
    assert (await other).vm.name == "vms/b"
    assert (await get_vm(durable, "vms/a")).vm.name == "vms/a"


@pytest.mark.asyncio
async def test_the_host_says_that_it_is_durable(durable: World) -> None:
    """By a capability, which a host in memory does not have."""
    info = await durable.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
    assert "durable" in info.capabilities
    assert "durable" not in capabilities(CONFIG)


# -- a restart ---------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_restart_goes_on_where_the_host_was(tmp_path: Path, disk: FaultyDisk) -> None:
    """The VM, its session at its epoch, an open exit and the pending outcome are there, and go on."""
    async with started(tmp_path, disk) as world:
        guest = await world.guest(lease_s=100)
        await world.fail_next_growth()
        (outcome,) = await guest.submit(guest.enable_tiles())
        before = (await get_vm(world, "vms/a")).header
        vcpu_uid = world.server.agent.state.vcpu_uid(world.server.agent.state.vcpu(guest.vcpu))
    async with started(tmp_path, disk, boot_id="boot-2") as world:
        after = (await get_vm(world, "vms/a")).header
        assert before.boot_id == after.boot_id == "boot-1", "it names the history, which goes on"
        assert after.revision > before.revision
        assert world.server.agent.state.vcpu_uid(world.server.agent.state.vcpu(guest.vcpu)) == vcpu_uid
        guest.world = world
        stream = world.sessions.Attach()
        await stream.write(guest.hello())
        attached = (await read(stream)).attached
        assert attached.vcpus[0].pending == outcome
        control = await world.control()
        await world.resolve(control, outcome.pending.exit, RETRY)
        (final,) = await read_outcomes(stream, 1)
        assert final.done.reallocated.new_bytes == 10_752
        stream.cancel()


@pytest.mark.asyncio
async def test_a_restored_host_is_another_history(tmp_path: Path, disk: FaultyDisk) -> None:
    """What came after the backup is lost: another boot id says so, and no id and no epoch is handed out twice."""
    async with started(tmp_path, disk) as world:
        await create_vm(world, "a")
        await asyncio.to_thread(back_up, tmp_path / "state", tmp_path / "copy")
        lost = await create_vm(world, "lost")
        control = await world.control()
    (tmp_path / "state").rename(tmp_path / "old")
    restore(tmp_path / "copy", tmp_path / "state")
    async with started(tmp_path, disk, boot_id="boot-2") as world:
        made = await create_vm(world, "made")
        assert made.header.boot_id == "boot-2"
        assert made.vm.uid != lost.vm.uid
        assert (await world.control()).epoch > control.epoch
    async with started(tmp_path, disk, boot_id="boot-3") as world:
        assert (await get_vm(world, "vms/made")).header.boot_id == "boot-2"


@pytest.mark.asyncio
async def test_a_request_id_is_known_after_a_restart(tmp_path: Path, disk: FaultyDisk) -> None:
    """The same request has the answer it had; another one under the same id is a mistake."""
    async with started(tmp_path, disk) as world:
        first = await create_vm(world, "a", "one")
    async with started(tmp_path, disk, boot_id="boot-2") as world:
        assert (await create_vm(world, "a", "one")).vm == first.vm
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create_vm(world, "b", "one")
        assert error_info(refused.value).reason == "REQUEST_ID_REUSED"


@pytest.mark.asyncio
async def test_a_lease_has_left_what_it_had_left(tmp_path: Path, disk: FaultyDisk) -> None:
    """Time goes on where it stopped, whatever the new process's clock says; a lease runs out after the rest."""
    async with started(tmp_path, disk) as world:
        guest = await world.guest(lease_s=30)
        world.clock.advance(20)
        await create_vm(world, "b")  # the last that is known of the time
    async with started(tmp_path, disk, boot_id="boot-2") as world:
        state = world.server.agent.state
        assert state.now_ns == 20_000_000_000
        world.clock.advance(9)
        assert guest.session in state.sessions
        world.clock.advance(1)
        assert guest.session not in state.sessions


@pytest.mark.asyncio
async def test_a_repeated_event_has_its_outcome_after_a_restart(tmp_path: Path, disk: FaultyDisk) -> None:
    """An answer that was lost with the connection is given again, and nothing is done twice."""
    async with started(tmp_path, disk) as world:
        guest = await world.guest(lease_s=100)
        sent = guest.event(xsetbv=event_pb2.Xsetbv(value=XCR0_AMX))
        (first,) = await guest.submit(sent)
    async with started(tmp_path, disk, boot_id="boot-2") as world:
        guest.world = world
        (again,) = await guest.submit(sent)
        assert again == first


@pytest.mark.asyncio
async def test_a_directory_belongs_to_one_host(tmp_path: Path, disk: FaultyDisk) -> None:
    """To one process at a time, to one name, and to one number of CPUs."""
    async with started(tmp_path, disk):
        with pytest.raises(DirectoryInUseError):
            DurableJournal(JournalOptions(directory=tmp_path / "state"), CONFIG)
    for change in ({"host": "other"}, {"cpus": 16}):
        with pytest.raises(Refused, match="which this host was made with"):
            async with started(tmp_path, disk, **change):
                pass
    async with started(tmp_path / "other", disk) as other:
        with pytest.raises(AddressError):
            async with started(tmp_path, disk, address=other.server.address):
                pass
    async with started(tmp_path, disk):
        pass


@pytest.mark.asyncio
async def test_settings_may_change_from_boot_to_boot(tmp_path: Path, disk: FaultyDisk) -> None:
    """A limit set while running stands until the configured one is another."""
    settings = host_pb2.HostSettings(byte_limit=1_000_000)
    async with started(tmp_path, disk, byte_limit=5_000_000) as world:
        request = host_pb2.UpdateHostRequest(settings=settings)
        request.update_mask.paths.append("byte_limit")
        await world.hosts.UpdateHost(request)
    async with started(tmp_path, disk, byte_limit=5_000_000) as world:
        info = await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
        assert info.settings.byte_limit == 1_000_000
    async with started(tmp_path, disk, byte_limit=6_000_000, faults=False) as world:
        info = await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest())
        assert info.settings.byte_limit == 6_000_000
        assert "faults" not in info.capabilities


@pytest.mark.asyncio
async def test_a_drained_host_serves_again(tmp_path: Path, disk: FaultyDisk) -> None:
    """Draining is of a process, not of a history."""
    async with started(tmp_path, disk) as world:
        await world.hosts.DrainHost(host_pb2.DrainHostRequest())
        with pytest.raises(grpc.aio.AioRpcError):
            await create_vm(world, "a")
    async with started(tmp_path, disk, boot_id="boot-2") as world:
        assert (await create_vm(world, "a")).vm.name == "vms/a"


# -- snapshots ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(400)
@pytest.mark.asyncio
async def test_snapshots_are_made_beside_a_running_host(tmp_path: Path, disk: FaultyDisk) -> None:
    """Every so many events, by a process of their own; two are kept, and the records since the older and some more."""
    async with started(tmp_path, disk, snapshot_every=10) as world:
        directory = tmp_path / "state"
        made: set[int] = set()
        async with asyncio.timeout(300):
            for nr in itertools.count():
                await create_vm(world, f"v{nr}", f"r{nr}")
                made |= {n for n, _ in snapshots(directory)}
                if len(made) >= 4:
                    break
                if nr % 10 == 9:  # the process leaves the processor to whoever wants it, and gets no endless work
                    await asyncio.sleep(0.2)
        assert len(snapshots(directory)) <= 3, "one may be new"
        await asyncio.to_thread(journal_of(world)._writer.close)
        with Store(directory, write=False) as store:
            older = snapshots(directory)[1][0]
            assert 1 < store.first() <= older - 5 + 1
        assert not verify(directory).problems
        digest = world.server.agent.machine.digest()
    async with started(tmp_path, disk, boot_id="boot-2") as world:
        assert (await create_vm(world, "v0", "r0")).vm.name == "vms/v0"
    assert digest


@pytest.mark.asyncio
async def test_a_host_that_stops_in_peace_leaves_a_snapshot(tmp_path: Path, disk: FaultyDisk) -> None:
    """Of its very end: the next start replays nothing, and an upgrade finds no record of older rules to replay."""
    async with started(tmp_path, disk) as world:
        await world.guest()
        machine = world.server.agent.machine
    with Store(tmp_path / "state", write=False) as store:
        recovered = recover(store, CONFIG)
        assert recovered.events == 0
        assert recovered.machine.digest() == machine.digest()
        assert snapshots(tmp_path / "state")[0][0] == store.last()


@pytest.mark.asyncio
async def test_without_a_snapshot_nothing_is_forgotten(
    tmp_path: Path, disk: FaultyDisk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that fails to make one is said, and the host goes on."""
    monkeypatch.setattr("host_agent.journal.snapshot_process.sys.executable", "false")
    async with started(tmp_path, disk, snapshot_every=3) as world:
        for nr in range(20):
            await create_vm(world, f"v{nr}")
        await settled(lambda: "no snapshot was made" in caplog.text)
        assert len((await world.vms.ListVms(vm_pb2.ListVmsRequest())).vms) == 20
        with Store(tmp_path / "state", write=False) as store:
            assert store.first() == 1


# -- a disk that fails -------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("operation", ["write", "sync"])
async def test_a_failed_write_stops_the_host(durable: World, disk: FaultyDisk, operation: str) -> None:
    """The call hears STORAGE_FAILED, and so does every other, reads included: nothing is answered any more."""
    await create_vm(durable, "a")
    disk.arm(operation)
    calls = (partial(create_vm, durable, "b"), partial(get_vm, durable, "vms/a"), partial(create_vm, durable, "c"))
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call()
        assert error_info(refused.value).reason == "STORAGE_FAILED"
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert refused.value.details() == (
            "the host could not write its journal, and stops: what is not on the disk is not answered"
        ), "no text of the disk's, and no path"
    assert disk.fired == 1
    assert durable.server.agent.failed.is_set()
    assert metric(durable, "fpstated_storage_failed") == 1
    with Store(journal_of(durable)._options.directory, write=False) as store:
        assert "vms/a" in recover(store, CONFIG).machine.state.vms


@pytest.mark.asyncio
async def test_streams_hear_of_a_failed_disk(durable: World, disk: FaultyDisk) -> None:
    """Also those that nobody sends anything on: they end with STORAGE_FAILED, and not when the server is stopped."""
    guest = await durable.guest(lease_s=3600)
    stream = durable.sessions.Attach()
    await stream.write(guest.hello())
    assert (await read(stream)).HasField("attached")
    watch = durable.exits.WatchExits(exit_pb2.WatchExitsRequest())
    await watch.read()
    disk.arm("sync")
    with suppress(grpc.aio.AioRpcError):
        await create_vm(durable, "b")
    for each in (stream, watch):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(each.read(), TIMEOUT_S)
        assert error_info(refused.value).reason == "STORAGE_FAILED"
    assert disk.fired == 1


@pytest.mark.asyncio
async def test_a_full_disk_refuses_work_and_serves_reads(durable: World, disk: FaultyDisk) -> None:
    """What was under way has not happened, anywhere; reads show what is durable; with room it goes on by itself."""
    await create_vm(durable, "a")
    disk.arm("write", full=True, sticky=True)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await create_vm(durable, "b", "two")
    assert error_info(refused.value).reason == "STORAGE_FULL"
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.details() == (
        "the host's disk is full: what was under way has not happened, and no new work is taken until there is room"
    )
    assert disk.fired
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await create_vm(durable, "c")
    assert error_info(refused.value).reason == "STORAGE_FULL"
    listed = await durable.vms.ListVms(vm_pb2.ListVmsRequest())
    assert [vm.name for vm in listed.vms] == ["vms/a"]
    assert metric(durable, "fpstated_storage_full") == 1
    disk.disarm()
    assert (await _when_there_is_room(durable, "b", "two")).vm.name == "vms/b"
    assert not durable.server.agent.failed.is_set()
    assert metric(durable, "fpstated_storage_full") == metric(durable, "fpstated_storage_failed") == 0
    await assert_recovers(durable)


@pytest.mark.asyncio
async def test_metrics_go_on_over_a_full_disk(durable: World, disk: FaultyDisk) -> None:
    """A growth and an exit that have not happened after all: no counter falls, and the next ones count."""
    guest = await durable.guest(lease_s=3600)
    await durable.fail_next_growth()
    held = Held(durable)
    await held.taken()
    disk.arm("write", full=True, sticky=True)
    refused = await waits(durable, guest.submit(guest.enable_tiles()))
    assert metric(durable, "fpstated_exits_open") == 1
    shown = metric(durable, "fpstate_growths_total", outcome="no_memory")
    held.free()
    with pytest.raises(grpc.aio.AioRpcError):
        await refused
    assert metric(durable, "fpstated_exits_open") == 0
    assert metric(durable, "fpstate_growths_total", outcome="no_memory") == shown == 1
    disk.disarm()
    await _when_there_is_room(durable, "b", "")
    guest.next_seq[guest.vcpu] = 1
    await guest.submit(guest.enable_tiles())
    assert metric(durable, "fpstated_exits_open") == 1
    assert metric(durable, "fpstated_exits_opened_total", cause="NO_MEMORY") == 2
    await assert_recovers(durable)


@pytest.mark.asyncio
async def test_a_full_disk_ends_the_streams(durable: World, disk: FaultyDisk) -> None:
    """Outcomes that were queued and never happened are not written; who attaches again resumes at what is durable."""
    guest = await durable.guest(lease_s=3600)
    stream = durable.sessions.Attach()
    await stream.write(guest.hello())
    assert (await read(stream)).HasField("attached")
    await stream.write(guest.batch(guest.event(hlt=event_pb2.Hlt())))
    await read_outcomes(stream, 1)
    watch = durable.exits.WatchExits(exit_pb2.WatchExitsRequest())
    await watch.read()
    waiting = asyncio.ensure_future(guest.submit_until_final())
    with suppress(grpc.aio.AioRpcError):
        await waiting
    disk.arm("write", full=True, sticky=True)
    await stream.write(guest.batch(guest.enable_tiles()))
    for each in (stream, watch):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(each.read(), TIMEOUT_S)
        assert error_info(refused.value).reason == "STORAGE_FULL"
    disk.disarm()
    await _when_there_is_room(durable, "b", "")
    stream = durable.sessions.Attach()
    await stream.write(guest.hello())
    assert (await read(stream)).attached.vcpus[0].next_seq == 2
    stream.cancel()
    await assert_recovers(durable)


@pytest.mark.asyncio
async def test_a_host_that_starts_on_a_full_disk_boots_when_there_is_room(tmp_path: Path, disk: FaultyDisk) -> None:
    """It had drained. Until its boot is on the disk it is the host it was, and then the one it was told to be."""
    async with started(tmp_path, disk) as world:
        await create_vm(world, "a")
        await world.server.drain_and_stop(0)
    disk.arm("write", full=True, sticky=True)
    async with started(tmp_path, disk, byte_limit=123_456) as world:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create_vm(world, "b", "two")
        assert error_info(refused.value).reason == "STORAGE_FULL"
        listed = await world.vms.ListVms(vm_pb2.ListVmsRequest())
        assert [vm.name for vm in listed.vms] == ["vms/a"]
        disk.disarm()
        assert (await _when_there_is_room(world, "b", "two")).vm.name == "vms/b"
        state = world.server.agent.state
        assert (state.draining, state.allocator.host.limit_bytes) == (False, 123_456)
        await assert_recovers(world)


@pytest.mark.asyncio
async def test_a_guest_waits_out_a_full_disk(durable: World, disk: FaultyDisk) -> None:
    """The client library asks again until there is room: the guest's instruction took long, and nothing else."""
    name = f"{await durable.vm()}/vcpus/0"
    session = await open_async_session(durable.server.address, vcpus=[name], client_name="g", lease_s=3600)
    disk.arm("write", full=True, sticky=True)
    blocked: asyncio.Future[Any] = asyncio.ensure_future(session.vcpu(name).xsetbv(XCR0_AMX))
    await settled(lambda: disk.fired > 0)
    assert not blocked.done()
    disk.disarm()
    outcome = await asyncio.wait_for(blocked, TIMEOUT_S)
    assert outcome.reallocated.new_bytes == 10_752
    await session.close()
    await assert_recovers(durable)


@pytest.mark.asyncio
async def test_time_stands_still_on_a_full_disk(durable: World, disk: FaultyDisk) -> None:
    """Nothing can be written down, so nothing falls due: a lease has afterwards what it had before."""
    guest = await durable.guest(lease_s=30)
    disk.arm("write", full=True, sticky=True)
    with pytest.raises(grpc.aio.AioRpcError):
        await create_vm(durable, "b")
    durable.clock.advance(1000)
    assert guest.session in durable.server.agent.state.sessions
    disk.disarm()
    await _when_there_is_room(durable, "b", "")
    assert guest.session in durable.server.agent.state.sessions
    durable.clock.advance(31)
    assert guest.session not in durable.server.agent.state.sessions
    await assert_recovers(durable)


@pytest.mark.asyncio
async def test_a_bug_in_a_command_is_a_record(durable: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it left behind is replayed as it was: the disk and the host stay of one mind."""
    from host_agent import machine as machine_module
    from host_agent.commands import CreateVm

    plain = machine_module.HANDLERS[CreateVm]

    def buggy(state: Any, command: CreateVm) -> Any:  # noqa: ANN401
        if command.vm_id == "bug":
            state.serial += 5
            raise ZeroDivisionError
        return plain(state, command)

    monkeypatch.setitem(machine_module.HANDLERS, CreateVm, buggy)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await create_vm(durable, "bug")
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    await create_vm(durable, "a")
    await assert_recovers(durable)


@pytest.mark.asyncio
async def test_a_flood_without_answers_waits_for_the_disk(durable: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acknowledgements on a stream need no answer, and still cannot fill the memory: the stream is read no further."""
    monkeypatch.setattr("host_agent.journal.durable.BACKLOG_MAX", 10)
    guest = await durable.guest(lease_s=100)
    stream = durable.sessions.Attach()
    await stream.write(guest.hello())
    await read(stream)
    held = Held(durable)
    await held.taken()
    for nr in range(100):
        await stream.write(session_pb2.AttachRequest(directive_ack=session_pb2.DirectiveAck(id=nr + 1)))
    journal = journal_of(durable)
    await settled(lambda: journal.backlog >= 11)
    async with grpc.aio.insecure_channel(durable.server.address) as channel:  # knows of no command, so is let go
        health: Any = health_pb2_grpc.HealthStub(channel)
        for _ in range(20):  # while these go there and back a host that read on would be seen
            await health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    assert journal.backlog == 11
    held.free()
    await settled(lambda: journal.durable >= 100)
    stream.cancel()


async def _when_there_is_room(world: World, vm_id: str, request_id: str) -> vm_pb2.CreateVmResponse:
    """Ask until it is done."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            answer = asyncio.ensure_future(create_vm(world, vm_id, request_id))
            await asyncio.wait({answer})
            refused = answer.exception()
            if refused is None:
                return answer.result()
            assert isinstance(refused, grpc.aio.AioRpcError)
            assert error_info(refused).reason == "STORAGE_FULL"
            await asyncio.sleep(0.02)
