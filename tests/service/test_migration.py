"""MigrationService over the wire: images in chunks, every way they can be wrong, and who may do what."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from fpstate.v1 import exit_pb2, migration_pb2, migration_pb2_grpc, vcpu_pb2, vm_pb2

from host_agent.image_form import IMAGE_BYTES_MAX
from host_agent.service.clock import ManualClock
from host_agent.service.options import ServerOptions
from host_agent.service.server import HostServer
from host_agent.state import HostConfig
from tests.service.world import World, error_info

pb = migration_pb2
Part = pb.ImportVmRequest
Export = tuple[pb.VmImageHeader, bytes]
GOES_TO = "unix:/run/there.sock"


@pytest_asyncio.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    """Another host."""
    config = HostConfig(host="there", boot_id="there", faults=True, check_invariants=True)
    clock = ManualClock()
    async with (
        HostServer(config, f"unix:{tmp_path}/there.sock", clock=clock) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield World(server, clock, channel)


async def begun(world: World, vm: str = "vms/a") -> pb.Migration:
    """A migration of a VM of two vCPUs that has begun."""
    await world.vm(vm[4:], vcpus=2)
    return (await world.migrations.BeginMigration(pb.BeginMigrationRequest(name=vm, target=GOES_TO))).migration


async def exported(world: World, migration: pb.Migration, *, chunk: int = 4096) -> Export:
    """Its image."""
    vm = migration.name.partition("/migrations/")[0]
    header, image = pb.VmImageHeader(), b""
    request = pb.ExportVmRequest(name=vm, migration=migration.name, chunk_bytes_max=chunk)
    async for part in world.migrations.ExportVm(request):
        if part.HasField("image_header"):
            assert not image
            header = part.image_header
        else:
            assert part.chunk.offset == len(image)
            assert len(part.chunk.data) <= chunk
            image += part.chunk.data
    return header, image


def parts(migration: pb.Migration, export: Export, *, chunk: int = 1000) -> list[Part]:
    """The messages of an import."""
    header, image = export
    start = pb.ImportVmStart(migration=migration.name, image_header=header)
    chunks = (pb.VmImageChunk(offset=at, data=image[at : at + chunk]) for at in range(0, len(image), chunk))
    return [Part(start=start), *(Part(chunk=each) for each in chunks)]


async def imported(world: World, messages: list[Part]) -> pb.ImportVmResponse:
    """What a host says to an import."""
    return await world.migrations.ImportVm(iter(messages))


@pytest.mark.asyncio
async def test_the_steps(world: World, there: World) -> None:
    """Each message says who is where; the proof is there with the state that it proves, and not before."""
    request = pb.BeginMigrationRequest(name="vms/a", target=GOES_TO, validate_only=True)
    await world.vm(vcpus=2)
    checked = await world.migrations.BeginMigration(request)
    assert (checked.requirements.vcpu_count, checked.HasField("migration")) == (2, False)
    answer = await there.migrations.CheckCompat(pb.CheckCompatRequest(requirements=checked.requirements))
    assert answer.compatible
    request = pb.BeginMigrationRequest(name="vms/a", target=GOES_TO, request_id="1")
    ours = (await world.migrations.BeginMigration(request)).migration
    assert (ours.role, ours.state, ours.ownership_epoch) == (pb.MIGRATION_ROLE_SOURCE, pb.MIGRATION_STATE_BEGUN, 1)
    assert (ours.target, ours.proof) == (GOES_TO, "")
    assert (await world.migrations.BeginMigration(request)).migration == ours
    reply = await imported(there, parts(ours, await exported(world, ours)))
    assert (reply.name, reply.uid) == ("vms/a", (await world.vms.GetVm(vm_pb2.GetVmRequest(name="vms/a"))).vm.uid)
    theirs = reply.migration
    assert (theirs.name, theirs.uid, theirs.source_host) == (ours.name, ours.uid, ours.source_host)
    assert (theirs.role, theirs.state) == (pb.MIGRATION_ROLE_TARGET, pb.MIGRATION_STATE_IMPORTED)
    assert theirs.proof == ""
    step = {"name": ours.name, "ownership_epoch": 1}
    staged = await there.migrations.StageMigration(pb.StageMigrationRequest(**step))  # type: ignore[arg-type]
    assert (staged.migration.state, staged.reserved_bytes) == (pb.MIGRATION_STATE_STAGED, 2 * 2624)
    commit = pb.CommitMigrationRequest(**step, proof=staged.migration.proof)  # type: ignore[arg-type]
    gone = (await world.migrations.CommitMigration(commit)).migration
    assert (gone.state, bool(gone.proof)) == (pb.MIGRATION_STATE_COMMITTED, True)
    assert (await world.migrations.BeginMigration(request)).migration == gone
    commit = pb.CommitMigrationRequest(**step, proof=gone.proof)  # type: ignore[arg-type]
    assert (await there.migrations.CommitMigration(commit)).migration.state == pb.MIGRATION_STATE_COMMITTED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.vms.GetVm(vm_pb2.GetVmRequest(name="vms/a"))
    info = error_info(caught.value)
    assert (info.reason, dict(info.metadata)) == ("VM_MOVED", {"vm": "vms/a", "target": GOES_TO})
    listed = await world.migrations.ListMigrations(pb.ListMigrationsRequest(parent="vms/a"))
    assert list(listed.migrations) == [gone]
    assert (await there.vms.GetVm(vm_pb2.GetVmRequest(name="vms/a"))).vm.uid == reply.uid


def _flip(messages: list[Part]) -> list[Part]:
    changed = Part.FromString(messages[1].SerializeToString())
    changed.chunk.data = bytes([changed.chunk.data[0] ^ 1]) + changed.chunk.data[1:]
    return [messages[0], changed, *messages[2:]]


def _header(**fields: object) -> Callable[[list[Part]], list[Part]]:
    def change(messages: list[Part]) -> list[Part]:
        first = Part.FromString(messages[0].SerializeToString())
        for name, value in fields.items():
            setattr(first.start.image_header, name, value)
        return [first, *messages[1:]]

    return change


def _big(messages: list[Part]) -> list[Part]:
    data = bytes(1024 * 1024 + 1)
    return [*_header(size_bytes=2 * len(data))(messages)[:1], Part(chunk=pb.VmImageChunk(data=data))]


def _of_another(messages: list[Part]) -> list[Part]:
    first = Part.FromString(messages[0].SerializeToString())
    first.start.migration = "vms/a/migrations/m-another"
    return [first, *messages[1:]]


def _nothing_of_ours(messages: list[Part]) -> list[Part]:
    data = b"fpstated vm image 2\n" + bytes(100)
    fields = {"size_bytes": len(data), "sha256": hashlib.sha256(data).digest()}
    return [*_header(**fields)(messages)[:1], Part(chunk=pb.VmImageChunk(data=data))]


#: What is done to the messages of a good import, and why it is refused.
WRONG: dict[str, tuple[Callable[[list[Part]], list[Part]], str]] = {
    "nothing at all": (lambda _messages: [], "FIELD_INVALID"),
    "no start": (lambda messages: messages[1:], "FIELD_INVALID"),
    "two starts": (lambda messages: [messages[0], *messages], "FIELD_INVALID"),
    "an empty message": (lambda messages: [*messages, Part()], "FIELD_INVALID"),
    "no chunk": (lambda messages: messages[:1], "SNAPSHOT_CORRUPT"),
    "truncated": (lambda messages: messages[:-1], "SNAPSHOT_CORRUPT"),
    "a gap": (lambda messages: [*messages[:2], *messages[3:]], "SNAPSHOT_CORRUPT"),
    "reordered": (lambda messages: [messages[0], messages[2], messages[1], *messages[3:]], "SNAPSHOT_CORRUPT"),
    "a chunk twice": (lambda messages: [*messages[:2], *messages[1:]], "SNAPSHOT_CORRUPT"),
    "more than announced": (
        lambda messages: [*messages, Part(chunk=pb.VmImageChunk(offset=_end(messages), data=b"x"))],
        "SNAPSHOT_CORRUPT",
    ),
    "a flipped bit": (_flip, "SNAPSHOT_CORRUPT"),
    "another digest": (_header(sha256=bytes(32)), "SNAPSHOT_CORRUPT"),
    "a digest of 20 bytes": (_header(sha256=bytes(20)), "FIELD_INVALID"),
    "a size of nothing": (_header(size_bytes=0), "FIELD_INVALID"),
    "larger than any": (_header(size_bytes=IMAGE_BYTES_MAX + 1), "LIMIT_REACHED"),
    "an empty chunk": (lambda messages: [messages[0], Part(chunk=pb.VmImageChunk())], "FIELD_INVALID"),
    "a chunk that is too large": (_big, "FIELD_INVALID"),
    "a version to come": (_header(format_version=2), "SNAPSHOT_VERSION_UNSUPPORTED"),
    "no version": (_header(format_version=0), "SNAPSHOT_VERSION_UNSUPPORTED"),
    "for another migration": (_of_another, "FIELD_INVALID"),
    "nothing of ours, with its digest": (_nothing_of_ours, "FIELD_INVALID"),
}


def _end(messages: list[Part]) -> int:
    return messages[-1].chunk.offset + len(messages[-1].chunk.data)


@pytest.mark.asyncio
@pytest.mark.parametrize("wrong", WRONG)
async def test_an_import_that_is_refused_changes_nothing(world: World, there: World, wrong: str) -> None:
    """Whatever is wrong with it; afterwards the good one is taken as if nothing had been."""
    change, reason = WRONG[wrong]
    ours = await begun(world)
    good = parts(ours, await exported(world, ours))
    before = there.server.agent.machine.digest()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await imported(there, change(good))
    assert error_info(caught.value).reason == reason
    listed = await there.migrations.ListMigrations(pb.ListMigrationsRequest())
    assert not listed.migrations
    if reason != "FIELD_INVALID":  # the machine has not been asked
        assert there.server.agent.machine.digest() == before
    assert (await imported(there, good)).migration.state == pb.MIGRATION_STATE_IMPORTED


@pytest.mark.asyncio
async def test_a_stream_that_breaks_off(world: World, there: World) -> None:
    """A driver that dies in the middle of an import leaves nothing."""
    ours = await begun(world)
    good = parts(ours, await exported(world, ours))

    call: Any = there.migrations.ImportVm()
    for message in good[:2]:
        await call.write(message)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not (await there.migrations.ListMigrations(pb.ListMigrationsRequest())).migrations


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("size", "fine"), [(0, True), (4096, True), (4095, False), (1 << 20, True), ((1 << 20) + 1, False)]
)
async def test_the_size_of_chunks(world: World, size: int, fine: bool) -> None:
    """4,096 bytes to 1 MiB, or the host's own choice."""
    ours = await begun(world)
    request = pb.ExportVmRequest(name="vms/a", migration=ours.name, chunk_bytes_max=size)
    stream: Any = world.migrations.ExportVm(request)
    if fine:
        assert (await stream.read()).image_header.size_bytes > 0
        stream.cancel()
        return
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert error_info(caught.value).metadata["field"] == "chunk_bytes_max"


@pytest.mark.asyncio
@pytest.mark.parametrize("call", ["Stage", "Commit", "Abort"])
async def test_an_old_epoch_and_an_unknown_migration(world: World, call: str) -> None:
    """MIGRATION_FENCED with both epochs, and MIGRATION_NOT_FOUND."""
    ours = await begun(world)
    method = getattr(world.migrations, f"{call}Migration")
    request = getattr(pb, f"{call}MigrationRequest")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(request(name=ours.name, ownership_epoch=7))
    info = error_info(caught.value)
    assert (info.reason, dict(info.metadata)) == (
        "MIGRATION_FENCED",
        {"vm": "vms/a", "epoch": "7", "currentEpoch": "1"},
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(request(name="vms/a/migrations/m-none", ownership_epoch=1))
    assert error_info(caught.value).reason == "MIGRATION_NOT_FOUND"


@pytest.mark.asyncio
async def test_a_confidential_vcpu_does_not_move(world: World) -> None:
    """Its registers are the firmware's: neither a migration nor a snapshot."""
    await world.vm(vcpus=0)
    await world.vcpus.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent="vms/a", index=0, confidential=True))
    for call in (
        world.migrations.BeginMigration(pb.BeginMigrationRequest(name="vms/a", target=GOES_TO)),
        world.migrations.ExportVm(pb.ExportVmRequest(name="vms/a")).read(),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert error_info(caught.value).reason == "STATE_CONFIDENTIAL"


@pytest.mark.asyncio
async def test_only_an_operator_goes_without_proof(tmp_path: Path) -> None:
    """A controller has the steps, and not `force`."""
    options = ServerOptions(socket_identity="controller/c")
    async with (
        HostServer(HostConfig(), f"unix:{tmp_path}/s", options=options) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = migration_pb2_grpc.MigrationServiceStub(channel)
        for call in (
            stub.CommitMigration(pb.CommitMigrationRequest(name="vms/a/migrations/m", ownership_epoch=1, force=True)),
            stub.AbortMigration(pb.AbortMigrationRequest(name="vms/a/migrations/m", ownership_epoch=1, force=True)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert error_info(caught.value).reason == "ROLE_NOT_ALLOWED"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetMigration(pb.GetMigrationRequest(name="vms/a/migrations/m"))
        assert error_info(caught.value).reason == "MIGRATION_NOT_FOUND"


@pytest.mark.asyncio
async def test_the_decision_to_migrate(world: World, there: World) -> None:
    """It begins the migration; once that is over the exit is CANCELLED with MIGRATED, and goes on at the target."""
    guest = await world.guest()
    await world.fail_next_growth()
    await guest.submit(guest.enable_tiles())
    name = await world.open_exit()
    control = await world.control()
    decision = exit_pb2.Decision(migrate=exit_pb2.Migrate(target=GOES_TO))
    decided = await world.resolve(control, name, decision)
    assert (decided.state, decided.decision) == (exit_pb2.EXIT_STATE_APPLYING, exit_pb2.DECISION_KIND_MIGRATE)
    (ours,) = (await world.migrations.ListMigrations(pb.ListMigrationsRequest(parent="vms/a"))).migrations
    await imported(there, parts(ours, await exported(world, ours)))
    staged = await there.migrations.StageMigration(pb.StageMigrationRequest(name=ours.name, ownership_epoch=1))
    commit = pb.CommitMigrationRequest(name=ours.name, ownership_epoch=1, proof=staged.migration.proof)
    gone = await world.migrations.CommitMigration(commit)
    over = (await world.exits.GetExit(exit_pb2.GetExitRequest(name=name))).exit
    assert (over.state, over.result) == (exit_pb2.EXIT_STATE_CANCELLED, exit_pb2.EXIT_RESULT_MIGRATED)
    commit = pb.CommitMigrationRequest(name=ours.name, ownership_epoch=1, proof=gone.migration.proof)
    await there.migrations.CommitMigration(commit)
    there.clock.advance(0.001)
    over = (await there.exits.GetExit(exit_pb2.GetExitRequest(name=name))).exit
    assert (over.state, over.result, over.attempt) == (exit_pb2.EXIT_STATE_RESOLVED, exit_pb2.EXIT_RESULT_COMMITTED, 2)


@pytest.mark.asyncio
async def test_nobody_comes(world: World) -> None:
    """At its deadline the source goes on by itself, and says why."""
    ours = await begun(world)
    world.clock.advance(300)
    found = (await world.migrations.GetMigration(pb.GetMigrationRequest(name=ours.name))).migration
    assert (found.state, found.reason) == (pb.MIGRATION_STATE_ABORTED, "deadline")
    await world.vms.ResetVm(vm_pb2.ResetVmRequest(name="vms/a"))


@pytest.mark.asyncio
async def test_a_snapshot_and_its_repetition(world: World) -> None:
    """A VM of its own under another name; the same request again gives the same VM, another finds the name taken."""
    await world.vm(vcpus=2)
    header, image = pb.VmImageHeader(), b""
    async for part in world.migrations.ExportVm(pb.ExportVmRequest(name="vms/a")):
        header = part.image_header if part.HasField("image_header") else header
        image += part.chunk.data
    chunk = Part(chunk=pb.VmImageChunk(data=image))
    first = Part(start=pb.ImportVmStart(request_id="1", name="vms/copy", image_header=header))
    made = await imported(world, [first, chunk])
    again = await imported(world, [first, chunk])
    assert (made.name, made.uid, made.HasField("migration")) == ("vms/copy", again.uid, False)
    assert made.uid != header.vm_uid
    other = Part(start=pb.ImportVmStart(request_id="2", name="vms/copy", image_header=header))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await imported(world, [other, chunk])
    assert error_info(caught.value).reason == "VM_EXISTS"
    reused = Part(start=pb.ImportVmStart(request_id="1", name="vms/third", image_header=header))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await imported(world, [reused, chunk])
    assert error_info(caught.value).reason == "REQUEST_ID_REUSED"
