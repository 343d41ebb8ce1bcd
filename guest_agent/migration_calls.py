"""The calls of MigrationService, blocking: images out and in, and the steps. What makes a migration of them: `migrate`.

Every call may be repeated, and is answered with what is; so none needs a request_id, an import without a migration
apart.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import grpc
from fpstate.v1 import migration_pb2 as pb
from fpstate.v1.migration_pb2_grpc import MigrationServiceStub

from fpstated.link.trace import trace_metadata
from guest_agent.error import host_error
from guest_agent.host import Host

CALL_TIMEOUT_S = 10.0
#: An image is made, sent, read and written down in one call.
IMAGE_TIMEOUT_S = 120.0
_CHUNK_BYTES = 256 * 1024

Request = TypeVar("Request")
Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class VmExport:
    """The image of a VM as a host gave it: its header, and its bytes."""

    header: pb.VmImageHeader
    image: bytes


class MigrationCalls:
    """The calls on one host. Each raises HostError where the host refuses it or is not reached."""

    def __init__(self, host: Host, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._stub = MigrationServiceStub(host.channel)
        self._timeout_s = timeout_s

    def begin(self, vm: str, target: str, *, validate_only: bool = False) -> pb.BeginMigrationResponse:
        """Stop a VM for its move to `target`; or only learn what its target must have."""
        request = pb.BeginMigrationRequest(name=vm, target=target, validate_only=validate_only)
        return self._call(self._stub.BeginMigration, request)

    def check_compat(self, requirements: pb.VmRequirements) -> list[pb.Incompatibility]:
        """Return all that stands against such a VM."""
        request = pb.CheckCompatRequest(requirements=requirements)
        return list(self._call(self._stub.CheckCompat, request).incompatibilities)

    def export_vm(self, vm: str, *, migration: str = "") -> VmExport:
        """Return the image of a VM: for a migration, or for none as a snapshot."""
        request = pb.ExportVmRequest(name=vm, migration=migration)
        header, image = pb.VmImageHeader(), bytearray()
        try:
            for part in self._stub.ExportVm(request, timeout=IMAGE_TIMEOUT_S, metadata=trace_metadata()):
                if part.HasField("image_header"):
                    header.CopyFrom(part.image_header)
                else:
                    image += part.chunk.data
        except grpc.RpcError as error:
            raise host_error(error) from error
        return VmExport(header, bytes(image))

    def import_vm(
        self, export: VmExport, *, migration: str = "", name: str = "", request_id: str = ""
    ) -> pb.ImportVmResponse:
        """Give an image to the host: for a migration, or for none as a VM of its own, named `name` if that is given."""
        start = pb.ImportVmStart(
            request_id=request_id or ("" if migration else str(uuid.uuid4())),
            migration=migration,
            name=name,
            image_header=export.header,
        )
        try:
            return self._stub.ImportVm(_parts(start, export.image), timeout=IMAGE_TIMEOUT_S, metadata=trace_metadata())
        except grpc.RpcError as error:
            raise host_error(error) from error

    def stage(self, migration: pb.Migration) -> pb.Migration:
        """Let the target take permission and memory."""
        request = pb.StageMigrationRequest(name=migration.name, ownership_epoch=migration.ownership_epoch)
        return self._call(self._stub.StageMigration, request, timeout_s=IMAGE_TIMEOUT_S).migration

    def commit(self, migration: pb.Migration, *, proof: str, force: bool = False) -> pb.Migration:
        """End the ownership of the source, or begin that of the target; `proof` is the other's `Migration.proof`."""
        request = pb.CommitMigrationRequest(
            name=migration.name, ownership_epoch=migration.ownership_epoch, proof=proof, force=force
        )
        return self._call(self._stub.CommitMigration, request).migration

    def abort(self, migration: pb.Migration, *, reason: str = "", proof: str = "", force: bool = False) -> pb.Migration:
        """Let the source run the VM again, or the target forget it; once it has staged it wants the source's proof."""
        request = pb.AbortMigrationRequest(
            name=migration.name,
            ownership_epoch=migration.ownership_epoch,
            reason=reason[:1024],
            proof=proof,
            force=force,
        )
        return self._call(self._stub.AbortMigration, request).migration

    def get(self, name: str) -> pb.Migration:
        """Return one migration as this host sees it."""
        return self._call(self._stub.GetMigration, pb.GetMigrationRequest(name=name)).migration

    def list(self, vm: str = "") -> list[pb.Migration]:
        """Return the migrations of a VM, or all, the oldest first."""
        found: list[pb.Migration] = []
        request = pb.ListMigrationsRequest(parent=vm)
        while True:
            page = self._call(self._stub.ListMigrations, request)
            found += page.migrations
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def _call(
        self,
        call: grpc.UnaryUnaryMultiCallable[Request, Reply],
        message: Request,
        *,
        timeout_s: float | None = None,
    ) -> Reply:
        try:
            return call(message, timeout=timeout_s or self._timeout_s, metadata=trace_metadata())
        except grpc.RpcError as error:
            raise host_error(error) from error


def _parts(start: pb.ImportVmStart, image: bytes) -> Iterator[pb.ImportVmRequest]:
    yield pb.ImportVmRequest(start=start)
    for at in range(0, len(image), _CHUNK_BYTES):
        yield pb.ImportVmRequest(chunk=pb.VmImageChunk(offset=at, data=image[at : at + _CHUNK_BYTES]))
