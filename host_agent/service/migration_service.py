"""MigrationService: images out and in, and the steps of a migration on whichever of its hosts this is."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

from fpstate.v1 import migration_pb2, migration_pb2_grpc

from host_agent.compat import check_compat, requirements_of
from host_agent.image_form import IMAGE_BYTES_MAX, pack_image
from host_agent.leaving import in_progress
from host_agent.migrating import find_migration
from host_agent.migration_commands import AbortMigration, BeginMigration, CommitMigration, StageMigration
from host_agent.migrations import MigrationRecord
from host_agent.service.access.principal import Role, current_principal
from host_agent.service.agent import HostAgent
from host_agent.service.errors import Failure
from host_agent.service.image_stream import read_import
from host_agent.service.layers import Context
from host_agent.service.paging import page
from host_agent.service.translate.compat import (
    incompatibility_to_proto,
    requirements_from_proto,
    requirements_to_proto,
)
from host_agent.service.translate.fields import header, migration_name, request_id, text, vm_name
from host_agent.service.translate.migration import chunk_bytes, image_header_to_proto, migration_to_proto
from host_agent.vm_export import check_exportable, find_export, image_of


class MigrationService(migration_pb2_grpc.MigrationServiceServicer):
    """Moving VMs between hosts."""

    def __init__(self, agent: HostAgent) -> None:
        self._agent = agent

    # -- images --------------------------------------------------------------------------------------------------------

    async def ExportVm(
        self, request: migration_pb2.ExportVmRequest, context: Context
    ) -> AsyncIterator[migration_pb2.ExportVmResponse]:
        """The image as it is at the first message, in chunks."""
        state = self._agent.state
        name = vm_name("name", request.name)
        migration = migration_name("migration", request.migration) if request.migration else ""
        step = chunk_bytes("chunk_bytes_max", request.chunk_bytes_max)
        image, revision = image_of(state, *find_export(state, name, migration)), state.revision
        raw = await asyncio.to_thread(pack_image, image)  # a value: nothing that happens meanwhile is in it
        if len(raw) > IMAGE_BYTES_MAX:
            text_ = f"the image of {name!r} has {len(raw)} bytes: {IMAGE_BYTES_MAX} are the most"
            raise Failure.because("LIMIT_REACHED", text_, limit="image_bytes_max", maximum=IMAGE_BYTES_MAX)
        made = image_header_to_proto(image, revision, len(raw), hashlib.sha256(raw).digest())
        yield migration_pb2.ExportVmResponse(header=header(state), image_header=made)
        for at in range(0, len(raw), step):
            chunk = migration_pb2.VmImageChunk(offset=at, data=raw[at : at + step])
            yield migration_pb2.ExportVmResponse(header=header(state), chunk=chunk)

    async def ImportVm(
        self, request_iterator: AsyncIterator[migration_pb2.ImportVmRequest], context: Context
    ) -> migration_pb2.ImportVmResponse:
        """One command, once the whole image is here."""
        found = self._agent.submit(await read_import(request_iterator))
        state = self._agent.state
        if isinstance(found, MigrationRecord):
            return migration_pb2.ImportVmResponse(
                header=header(state), name=found.vm, uid=found.vm_uid, migration=migration_to_proto(found)
            )
        return migration_pb2.ImportVmResponse(header=header(state), name=found.name, uid=found.uid)

    async def CheckCompat(
        self, request: migration_pb2.CheckCompatRequest, context: Context
    ) -> migration_pb2.CheckCompatResponse:
        """Whether this host could hold and run such a VM, and all that stands against it."""
        state = self._agent.state
        found = check_compat(state, requirements_from_proto(request.requirements))
        return migration_pb2.CheckCompatResponse(
            header=header(state),
            compatible=not found,
            incompatibilities=[incompatibility_to_proto(each) for each in found],
        )

    # -- steps ---------------------------------------------------------------------------------------------------------

    async def BeginMigration(
        self, request: migration_pb2.BeginMigrationRequest, context: Context
    ) -> migration_pb2.BeginMigrationResponse:
        """Stop the VM; or only say what its target must have."""
        name = vm_name("name", request.name)
        target = text("target", request.target, longest=1024, required=True)
        again = request_id(request.request_id)
        if request.validate_only:
            return self._validated(name)
        command = BeginMigration(vm=name, target=target, request_id=again)
        record: MigrationRecord = self._agent.submit(command)
        state = self._agent.state
        reply = migration_pb2.BeginMigrationResponse(header=header(state), migration=migration_to_proto(record))
        if record.vm in state.leaving:  # else it is a repetition, and the VM has gone
            reply.requirements.CopyFrom(requirements_to_proto(requirements_of(state.vms[record.vm])))
        return reply

    def _validated(self, name: str) -> migration_pb2.BeginMigrationResponse:
        state = self._agent.state
        vm = state.vm(name)
        if name in state.leaving:
            raise in_progress(state.leaving[name])
        check_exportable(state, vm, stopping=True)
        return migration_pb2.BeginMigrationResponse(
            header=header(state), requirements=requirements_to_proto(requirements_of(vm))
        )

    async def StageMigration(
        self, request: migration_pb2.StageMigrationRequest, context: Context
    ) -> migration_pb2.StageMigrationResponse:
        """Take permission and memory."""
        command = StageMigration(
            migration=migration_name("name", request.name),
            ownership_epoch=request.ownership_epoch,
            request_id=request_id(request.request_id),
        )
        record: MigrationRecord = self._agent.submit(command)
        return migration_pb2.StageMigrationResponse(
            header=header(self._agent.state),
            migration=migration_to_proto(record),
            reserved_bytes=record.reserved_bytes,
        )

    async def CommitMigration(
        self, request: migration_pb2.CommitMigrationRequest, context: Context
    ) -> migration_pb2.CommitMigrationResponse:
        """Give the VM up, or own it."""
        command = CommitMigration(
            migration=migration_name("name", request.name),
            ownership_epoch=request.ownership_epoch,
            proof=text("proof", request.proof, longest=128),
            force=_forced("CommitMigration", force=request.force),
            request_id=request_id(request.request_id),
        )
        record: MigrationRecord = self._agent.submit(command)
        return migration_pb2.CommitMigrationResponse(
            header=header(self._agent.state), migration=migration_to_proto(record)
        )

    async def AbortMigration(
        self, request: migration_pb2.AbortMigrationRequest, context: Context
    ) -> migration_pb2.AbortMigrationResponse:
        """Run the VM again, or forget it."""
        command = AbortMigration(
            migration=migration_name("name", request.name),
            ownership_epoch=request.ownership_epoch,
            reason=text("reason", request.reason, longest=1024),
            proof=text("proof", request.proof, longest=128),
            force=_forced("AbortMigration", force=request.force),
            request_id=request_id(request.request_id),
        )
        record: MigrationRecord = self._agent.submit(command)
        return migration_pb2.AbortMigrationResponse(
            header=header(self._agent.state), migration=migration_to_proto(record)
        )

    # -- looking -------------------------------------------------------------------------------------------------------

    async def GetMigration(
        self, request: migration_pb2.GetMigrationRequest, context: Context
    ) -> migration_pb2.GetMigrationResponse:
        """One migration."""
        state = self._agent.state
        record = find_migration(state, migration_name("name", request.name))
        return migration_pb2.GetMigrationResponse(header=header(state), migration=migration_to_proto(record))

    async def ListMigrations(
        self, request: migration_pb2.ListMigrationsRequest, context: Context
    ) -> migration_pb2.ListMigrationsResponse:
        """Migrations of a VM or of all."""
        state = self._agent.state
        vm = vm_name("parent", request.parent) if request.parent else ""
        wanted = (record for record in state.migrations.values() if vm in ("", record.vm))
        found, token = page(
            wanted, lambda record: (record.begun_ns, record.name), size=request.page_size, token=request.page_token
        )
        return migration_pb2.ListMigrationsResponse(
            header=header(state), migrations=[migration_to_proto(each) for each in found], next_page_token=token
        )


def _forced(call: str, *, force: bool) -> bool:
    """Going without the other host's proof is an operator's to answer for."""
    principal = current_principal.get()
    if force and principal.role is not Role.OPERATOR:
        method = f"/fpstate.v1.MigrationService/{call}"
        text_ = f"the role {principal.role.value} does not have {method} with force"
        raise Failure.because(
            "ROLE_NOT_ALLOWED", text_, method=method, role=principal.role.value, principal=principal.id
        )
    return force
