"""Watch: a list and what changed after it, in order, once each; and what it answers where it cannot tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from fpstate.v1 import exit_pb2, host_pb2, session_pb2, task_pb2, vcpu_pb2, vm_pb2, watch_pb2
from google.protobuf import duration_pb2, field_mask_pb2

from fault_lab.injection.action import FailErrno
from fpu_core.alloc import POINT_REALLOC_ALLOC
from host_agent.commands import (
    ArmFault,
    CreateVcpu,
    CreateVm,
    DeleteVcpu,
    OpenSession,
    RequestPermission,
    ResetVm,
    SubmitBatch,
    UpdateVm,
)
from host_agent.events import GuestEvent, Xsetbv
from host_agent.migration_commands import AbortMigration, BeginMigration
from host_agent.service.clock import ManualClock
from host_agent.service.exit_watch import ExitNews
from host_agent.service.limits import HISTORY_KEPT_NS, WATCH_FILTERS_MAX
from host_agent.service.options import ServerOptions
from host_agent.service.server import HostServer
from host_agent.service.watch.history import History, LappedError, Watcher
from host_agent.state import HostConfig
from tests.core.host import Host, host_config
from tests.journal.rig import FaultyDisk
from tests.service.test_durable import CONFIG, Held, create_vm, disk, started, waits
from tests.service.test_limits import read_to_the_end
from tests.service.world import TIMEOUT_S, World, error_info, settled

__all__ = ["disk"]  # the fixture

CREATED, UPDATED, DELETED = "CREATED", "UPDATED", "DELETED"
EXITS = [watch_pb2.RESOURCE_KIND_EXIT]


async def message(watch: Any) -> watch_pb2.WatchResponse:  # noqa: ANN401 -- a call has no public type
    """The next message, whatever it is; there has to be one."""
    found = await asyncio.wait_for(watch.read(), TIMEOUT_S)
    assert isinstance(found, watch_pb2.WatchResponse), "the stream has ended"
    return found


async def changes(watch: Any, through: int) -> list[watch_pb2.ResourceChange]:  # noqa: ANN401
    """What changed until the stream is complete up to a revision."""
    found: list[watch_pb2.ResourceChange] = []
    while True:
        got = await message(watch)
        assert got.WhichOneof("event") in ("change", "bookmark")
        if got.HasField("change"):
            found.append(got.change)
        if got.header.revision >= through:
            return found


def told(found: list[watch_pb2.ResourceChange]) -> list[tuple[str, str]]:
    """Kind and name of each change."""
    return [(watch_pb2.ChangeKind.Name(change.kind)[len("CHANGE_KIND_") :], change.name) for change in found]


async def revision(world: World) -> int:
    """Where the host is, and from now on it keeps what changes."""
    return (await world.vms.ListVms(vm_pb2.ListVmsRequest())).header.revision


def watch_from(world: World, from_revision: int | None = None, **fields: Any) -> Any:  # noqa: ANN401
    """Begin to watch."""
    return world.watches.Watch(watch_pb2.WatchRequest(from_revision=from_revision, **fields))


def below(parent: str, *kinds: watch_pb2.ResourceKind.ValueType) -> watch_pb2.WatchFilter:
    """A filter."""
    return watch_pb2.WatchFilter(parent=parent, kinds=kinds)


async def relabel(world: World, label: str, vm: str = "vms/a") -> int:
    """Change a VM and nothing else; the revision of the change."""
    changed = vm_pb2.Vm(name=vm, labels={"x": label})
    request = vm_pb2.UpdateVmRequest(vm=changed, update_mask=field_mask_pb2.FieldMask(paths=["labels"]))
    return (await world.vms.UpdateVm(request)).header.revision


async def refused(watch: Any) -> grpc.aio.AioRpcError:  # noqa: ANN401
    """Why a watch did not begin, or ended."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_to_the_end(watch)
    return caught.value


# -- what it tells -----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_list_and_what_changed_after_it(world: World) -> None:
    """Made, changed and gone again: each is told, in order, although the watch begins when all is over."""
    before = await revision(world)
    await world.vm(permit=False)
    await relabel(world, "y")
    await world.vms.DeleteVm(vm_pb2.DeleteVmRequest(name="vms/a", force=True))
    watch = watch_from(world, before, filters=[below("vms/a", watch_pb2.RESOURCE_KIND_VM)])
    found = await changes(watch, await revision(world))
    assert told(found) == [
        (CREATED, "vms/a"),
        (UPDATED, "vms/a"),
        (UPDATED, "vms/a"),
        (DELETED, "vms/a"),
    ]  # it was made, its vCPU took memory, it was labelled, it went with all that was in it
    assert [change.revision for change in found] == [before + 1, before + 2, before + 3, before + 4]
    assert len({change.uid for change in found}) == 1
    assert found[-1].vm.labels == {"x": "y"}
    watch.cancel()


@pytest.mark.asyncio
async def test_what_would_name_no_resource_is_refused_as_ever(world: World) -> None:
    """The history asks for the names that a command may make, before the machine has refused them."""
    await world.vm(permit=False)
    watch = watch_from(world)
    await message(watch)
    await world.tasks.CreateTask(task_pb2.CreateTaskRequest(parent="vms/a", task_id="t"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.tasks.CloneTask(task_pb2.CloneTaskRequest(task="vms/a/tasks/t", new_task_id="vms/a"))
    assert error_info(caught.value).reason == "FIELD_INVALID"
    watch.cancel()


@pytest.mark.asyncio
async def test_changes_of_one_revision_come_together(world: World) -> None:
    """What goes away goes from the leaves; the stream is complete up to a revision with the last of its changes."""
    await world.vm(permit=False)
    before = await revision(world)
    deleted = await world.vms.DeleteVm(vm_pb2.DeleteVmRequest(name="vms/a", force=True))
    watch = watch_from(world, before)
    got = [await message(watch) for _ in range(3)]
    assert told([each.change for each in got]) == [
        (DELETED, "vms/a/tasks/main"),
        (DELETED, "vms/a/vcpus/0"),
        (DELETED, "vms/a"),
    ]
    assert {each.change.revision for each in got} == {deleted.header.revision}
    assert [each.header.revision for each in got] == [before, before, before + 1]
    watch.cancel()


@pytest.mark.asyncio
async def test_every_resource_is_as_its_list_shows_it(world: World) -> None:
    """VMs, vCPUs, tasks, sessions, exits and the host: the last that was told of each is what a list shows."""
    watch = watch_from(world)
    assert (await message(watch)).HasField("bookmark")
    guest = await world.guest()
    await world.fail_next_growth()
    await guest.submit(guest.enable_tiles())
    settings = host_pb2.HostSettings(byte_limit=1 << 30)
    changed = host_pb2.UpdateHostRequest(settings=settings, update_mask=field_mask_pb2.FieldMask(paths=["byte_limit"]))
    last = (await world.hosts.UpdateHost(changed)).header.revision
    latest = {change.name: change for change in await changes(watch, last)}
    watch.cancel()
    vms = await world.vms.ListVms(vm_pb2.ListVmsRequest())
    vcpus = await world.vcpus.ListVcpus(vcpu_pb2.ListVcpusRequest(parent="vms/a"))
    tasks = await world.tasks.ListTasks(task_pb2.ListTasksRequest(parent="vms/a"))
    sessions = await world.sessions.ListSessions(session_pb2.ListSessionsRequest())
    exits = await world.exits.ListExits(exit_pb2.ListExitsRequest())
    assert latest["vms/a"].vm == vms.vms[0]
    assert latest["vms/a/vcpus/0"].vcpu == vcpus.vcpus[0]
    assert {task.name: latest[task.name].task for task in tasks.tasks} == {task.name: task for task in tasks.tasks}
    assert latest[guest.session].session == sessions.sessions[0]
    assert latest["vms/a/vcpus/0/exits/1"].exit == exits.exits[0]
    assert latest["host"].host.settings == settings
    assert latest["host"].host.drain_state == host_pb2.DRAIN_STATE_SERVING
    assert len(latest) == 5 + len(tasks.tasks)


@pytest.mark.asyncio
async def test_filters_let_through_what_fits_one_of_them(world: World) -> None:
    """A kind anywhere, or everything below one name; vms/a is not vms/ab."""
    before = await revision(world)
    for vm_id in ("a", "ab", "b"):
        await world.vm(vm_id, permit=False)
    wanted = [below("vms/a"), below("", watch_pb2.RESOURCE_KIND_TASK)]
    watch = watch_from(world, before, filters=wanted)
    last = await revision(world)
    assert told(await changes(watch, last)) == [
        (CREATED, "vms/a"),
        (CREATED, "vms/a/tasks/main"),
        (UPDATED, "vms/a"),
        (CREATED, "vms/a/vcpus/0"),
        (CREATED, "vms/ab/tasks/main"),
        (CREATED, "vms/b/tasks/main"),
    ]
    watch.cancel()


@pytest.mark.asyncio
async def test_a_watcher_that_hears_nothing_hears_how_far_nothing_goes(world: World) -> None:
    """Changes that no filter lets through move its bookmarks on, and it may wish how often they come."""
    watch = watch_from(world, filters=[below("vms/z")], bookmark_interval=duration_pb2.Duration(nanos=100_000_000))
    first = await message(watch)
    await world.vm()
    last = await revision(world)
    while (got := await message(watch)).header.revision < last:
        assert got.HasField("bookmark")
    assert first.header.revision < last == got.header.revision
    assert got.header.boot_id == "test-boot"
    watch.cancel()


@pytest.mark.asyncio
async def test_a_host_that_nobody_asks_keeps_nothing(world: World) -> None:
    """What changed before the first list is forgotten at once, and what is not asked for any more a minute later."""
    await world.vm()
    history = world.server.agent.history
    assert (history.on, len(history)) == (False, 0)
    before = await revision(world)
    await relabel(world, "one")
    assert len(history) == 1
    world.clock.advance(HISTORY_KEPT_NS / 1e9 + 1)
    await relabel(world, "two")
    assert (history.on, len(history)) == (False, 0)
    got = await message(watch_from(world, before))
    assert got.compacted.compact_revision == got.header.revision == before + 2


# -- what it cannot tell -----------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_revision_that_is_forgotten_is_answered_with_compacted(world: World) -> None:
    """It is the only message, and says from where a watch would begin; who lists again may watch from there."""
    await world.vm()
    watch = watch_from(world, 1)
    got = await message(watch)
    assert got.HasField("compacted")
    assert await watch.read() is grpc.aio.EOF
    assert await watch.code() is grpc.StatusCode.OK
    again = watch_from(world, await revision(world))
    last = await relabel(world, "x")
    assert told(await changes(again, last)) == [(UPDATED, "vms/a")]
    again.cancel()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("fields", "reason", "metadata"),
    [
        pytest.param(
            {"from_revision": 1000},
            "REVISION_IN_FUTURE",
            {"revision": "1000", "currentRevision": "0"},
            id="beyond where the host is",
        ),
        pytest.param(
            {"from_revision": 0, "boot_id": "another"},
            "HISTORY_CHANGED",
            {"bootId": "another", "currentBootId": "test-boot"},
            id="of another history",
        ),
        pytest.param(
            {"filters": [watch_pb2.WatchFilter(parent="vms/A")]}, "FIELD_INVALID", "filters[0].parent", id="no name"
        ),
        pytest.param(
            {"filters": [watch_pb2.WatchFilter(), watch_pb2.WatchFilter(kinds=[watch_pb2.RESOURCE_KIND_UNSPECIFIED])]},
            "FIELD_INVALID",
            "filters[1].kinds[0]",
            id="no kind",
        ),
        pytest.param(
            {"filters": [watch_pb2.WatchFilter()] * (WATCH_FILTERS_MAX + 1)}, "FIELD_INVALID", "filters", id="too many"
        ),
        pytest.param(
            {"bookmark_interval": duration_pb2.Duration(nanos=1)}, "FIELD_INVALID", "bookmark_interval", id="too often"
        ),
    ],
)
async def test_what_no_watch_begins_with(
    world: World, fields: dict[str, Any], reason: str, metadata: dict[str, str] | str
) -> None:
    """A revision of elsewhere is out of range, and a bad field is named."""
    info = error_info(await refused(world.watches.Watch(watch_pb2.WatchRequest(**fields))))
    assert info.reason == reason
    assert (dict(info.metadata) if isinstance(metadata, dict) else info.metadata["field"]) == metadata
    assert world.server.agent.history.empty.is_set()


def small_history(host: Host, **limits: int) -> History:
    """A history of a host of the tests, which keeps little."""
    history = History(host.machine.state, ManualClock(), **limits)
    history.wanted()
    return history


def watched(host: Host, history: History, command: Any) -> None:  # noqa: ANN401 -- any command
    """Apply a command where a history hears of it."""
    before = history.before(command, host.now_ns)
    assert before is not None
    host.machine.apply(command, host.now_ns)
    history.after(before, host.machine.take_effects())


@pytest.mark.parametrize("limits", [{"changes_max": 6}, {"bytes_max": 500}], ids=["by number", "by size"])
def test_what_a_history_keeps_is_bounded(limits: dict[str, int]) -> None:
    """The oldest is forgotten; a watcher that has not read it is told so, and one that has reads on."""
    host = Host()
    history = small_history(host, **limits)
    slow, fast = (Watcher(history, history.place_after(0)) for _ in range(2))
    for nr in range(8):
        watched(host, history, CreateVm(vm_id=f"v{nr}"))
        group = fast.take()
        assert group is not None
        assert [change.name for change in group.changes] == [f"vms/v{nr}", f"vms/v{nr}/tasks/main"]
    assert len(history) <= 6
    assert history.since == 8 - len(history) // 2
    with pytest.raises(LappedError):
        slow.take()
    with pytest.raises(LappedError):
        history.place_after(history.since - 1)
    assert Watcher(history, history.place_after(history.since)).take() is not None
    assert fast.take() is None


def test_a_settled_exit_that_makes_room_for_another_is_gone() -> None:
    """GetExit does not know it any more, so the watchers hear that it is deleted."""
    host = Host(host_config(max_resolved_exits=1))
    host.apply(CreateVm(vm_id="a"))
    host.apply(RequestPermission(vm="vms/a", feature=18, guest=True))
    for nr in range(2):
        host.apply(CreateVcpu(vm="vms/a", index=nr))
        host.apply(ArmFault(point=POINT_REALLOC_ALLOC, action=FailErrno(12)))
        host.events(f"vms/a/vcpus/{nr}", Xsetbv(0, 0x602E7))
    host.apply(DeleteVcpu(vcpu="vms/a/vcpus/0"))
    host.machine.take_effects()
    history = small_history(host)
    watched(host, history, ResetVm(vm="vms/a"))
    group = history.group(history.place_after(history.since))
    assert group is not None
    exits = {change.name: watch_pb2.ChangeKind.Name(change.kind) for change in group.changes if "exits" in change.name}
    assert exits == {"vms/a/vcpus/0/exits/1": "CHANGE_KIND_DELETED", "vms/a/vcpus/1/exits/1": "CHANGE_KIND_UPDATED"}


def test_an_exit_of_a_vcpu_that_was_made_again_is_another_one() -> None:
    """Its numbers begin anew, and so the name comes again: the old one goes, the new one is made, in one revision."""
    host = Host()
    host.apply(CreateVm(vm_id="a"))
    host.apply(RequestPermission(vm="vms/a", feature=18, guest=True))
    host.apply(ArmFault(point=POINT_REALLOC_ALLOC, action=FailErrno(12)))
    history = small_history(host)
    for _ in range(2):
        host.apply(CreateVcpu(vm="vms/a", index=0))
        session = host.session("vms/a/vcpus/0")
        events = (GuestEvent("vms/a/vcpus/0", 1, Xsetbv(0, 0x602E7)),)
        watched(host, history, SubmitBatch(session=session.name, epoch=session.epoch, events=events))
        host.machine.apply(DeleteVcpu(vcpu="vms/a/vcpus/0"), host.now_ns)
        host.machine.take_effects()
    group = history.group(history.place_after(host.machine.state.revision - 2))
    assert group is not None
    found = [(c.kind, c.uid) for c in group.changes if c.name == "vms/a/vcpus/0/exits/1"]
    assert [kind for kind, _ in found] == [watch_pb2.CHANGE_KIND_DELETED, watch_pb2.CHANGE_KIND_CREATED]
    assert found[0][1] != found[1][1]


# -- who may -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def as_role(folder: Path, identity: str) -> AsyncIterator[World]:
    """A host whose socket makes everybody this; what else happens on it is done inside."""
    options = ServerOptions(socket_identity=identity)
    config = HostConfig(host="test-host", boot_id="test-boot", faults=True)
    clock = ManualClock()
    async with (
        HostServer(
            config, f"unix:{folder}/host.sock", clock=clock, options=options, bookmark_interval_s=0.05
        ) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield World(server, clock, channel)


@pytest.mark.asyncio
async def test_a_guest_sees_its_own(tmp_path: Path) -> None:
    """Its VM with what is in it, and the session that it has opened; nobody else's, and no filter that is wider."""
    async with as_role(tmp_path, "guest/a") as world:
        submit = world.server.agent.submit
        watch = watch_from(world, filters=[below("vms/a")])
        await message(watch)
        submit(CreateVm(vm_id="b"))
        guest = await world.guest()
        assert told(await changes(watch, world.server.agent.state.revision))[0] == (CREATED, "vms/a")
        moving = submit(BeginMigration(vm="vms/a", target="unix:/elsewhere"))
        submit(AbortMigration(migration=moving.name, ownership_epoch=moving.ownership_epoch))
        submit(UpdateVm(vm="vms/a", fields=("labels",), labels={"still": "here"}))
        assert told(await changes(watch, world.server.agent.state.revision)) == [(UPDATED, "vms/a")], "no migration"
        mine = watch_from(world, filters=[below(guest.session)])
        await message(mine)
        closing = session_pb2.CloseSessionRequest(session=guest.session, epoch=guest.epoch)
        await world.sessions.CloseSession(closing)
        assert told(await changes(mine, world.server.agent.state.revision)) == [(DELETED, guest.session)]
        for filters in ([], [below("vms/b")], [below("vms/a"), below("")], [below("sessions/x"), below("host")]):
            assert error_info(await refused(watch_from(world, filters=filters))).reason == "NOT_OWNER"
        for each in (watch, mine):
            each.cancel()


@pytest.mark.asyncio
async def test_a_session_is_shown_to_its_guest_and_to_operators(tmp_path: Path) -> None:
    """ListSessions is an operator's, so a controller hears of vCPUs and exits and of no session."""
    async with as_role(tmp_path, "controller/c") as world:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.sessions.ListSessions(session_pb2.ListSessionsRequest())
        assert error_info(caught.value).reason == "ROLE_NOT_ALLOWED"
        watch = watch_from(world)
        await message(watch)
        host = world.server.agent
        host.submit(CreateVm(vm_id="a"))
        host.submit(CreateVcpu(vm="vms/a", index=0))
        host.submit(OpenSession(client_name="x", vcpus=("vms/a/vcpus/0",), principal="local/guest/a"))
        found = told(await changes(watch, host.state.revision))
        assert (CREATED, "vms/a/vcpus/0") in found
        assert not any(name.startswith("sessions/") for _, name in found)
        watch.cancel()


# -- the disk, restarts, the end ---------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_nothing_is_told_before_it_is_durable(tmp_path: Path, disk: FaultyDisk) -> None:
    """A change that the disk has no room for after all was never shown, and the watchers are ended."""
    async with started(tmp_path, disk) as world:
        await create_vm(world, "a")
        watch = watch_from(world)
        await message(watch)
        held = Held(world)
        await held.taken()
        disk.arm("write", full=True, sticky=True)
        answer = await waits(world, create_vm(world, "b"))
        news = asyncio.ensure_future(watch.read())
        await asyncio.wait({news}, timeout=0.2)
        assert len(world.server.agent.history) > 0, "the change is there, and waits for the disk"
        assert not news.done()
        held.free()
        for call in (answer, news):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert error_info(caught.value).reason == "STORAGE_FULL"
        assert disk.fired
        disk.disarm()
        history = world.server.agent.history
        await settled(history.empty.is_set)
        assert len(history) == 0
        got = await message(watch_from(world, 0))
        assert got.compacted.compact_revision == world.server.agent.state.revision


@pytest.mark.asyncio
async def test_a_restart_forgets_what_changed_and_says_so(tmp_path: Path, disk: FaultyDisk) -> None:
    """The history goes on with the same boot id, and a revision of before is compacted: list again."""
    async with started(tmp_path, disk) as world:
        before = await revision(world)
        await create_vm(world, "a")
    async with started(tmp_path, disk, boot_id="boot-2") as world:
        got = await message(watch_from(world, before, boot_id=CONFIG.boot_id))
        assert got.HasField("compacted")
        assert got.header.boot_id == CONFIG.boot_id


@pytest.mark.asyncio
async def test_a_watch_ends_with_the_host(world: World) -> None:
    """Drained, it says HOST_DRAINING; that the host goes away is a change that was told before."""
    watch = watch_from(world, filters=[below("host")])
    await message(watch)
    await world.hosts.DrainHost(host_pb2.DrainHostRequest(grace=duration_pb2.Duration(seconds=1)))
    assert (await message(watch)).change.host.drain_state == host_pb2.DRAIN_STATE_DRAINING
    assert error_info(await refused(watch)).reason == "HOST_DRAINING"


@pytest.mark.asyncio
@pytest.mark.parametrize("call", ["Watch", "WatchExits"])
async def test_a_watcher_that_never_reads_keeps_no_stream(tmp_path: Path, call: str) -> None:
    """It is ended with what it holds, and finds out when it reads again; nobody else is kept from anything."""
    address = f"unix:{tmp_path}/host.sock"
    config = HostConfig(faults=True)
    # A small window, so that few changes fill it.
    options = [("grpc.http2.lookahead_bytes", 1), ("grpc.use_local_subchannel_pool", 1)]
    async with (
        HostServer(config, address, clock=ManualClock(), patience_s=0.2) as server,
        grpc.aio.insecure_channel(address) as channel,
        grpc.aio.insecure_channel(address, options=options) as stuck,
    ):
        world, slow = World(server, ManualClock(), channel), World(server, ManualClock(), stuck)
        await world.vm(permit=False)
        watch = watch_from(slow) if call == "Watch" else slow.exits.WatchExits(exit_pb2.WatchExitsRequest())
        await watch.read()
        agent = server.agent
        assert server.limits.under_way(streams=True) == 1
        async with asyncio.timeout(TIMEOUT_S * 3):
            while server.limits.under_way(streams=True):
                if call == "Watch":
                    labels = {f"k{nr}": "x" * 256 for nr in range(60)}
                    agent.submit(UpdateVm(vm="vms/a", fields=("labels",), labels=labels))
                else:
                    agent.exit_watchers.deliver(ExitNews("vms/a", exit_pb2.Exit(name="n" * 100_000), 1))
                await asyncio.sleep(0.01)
        assert agent.history.empty.is_set()
        assert agent.exit_watchers.empty.is_set()
        info = error_info(await refused(watch))
        assert (info.reason, info.metadata["limit"]) == ("LIMIT_REACHED", "stream_patience_seconds")
