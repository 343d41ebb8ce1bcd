"""Migrations and images."""

from __future__ import annotations

from importlib import metadata
from typing import Final

from fpstate.v1 import migration_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from host_agent.migrations import MigrationRecord, MigrationRole, MigrationState
from host_agent.service.errors import field_invalid
from host_agent.service.translate.compat import requirements_to_proto
from host_agent.service.translate.fields import NS_PER_S
from host_agent.vm_image import VmImage

_ROLES: Final[dict[MigrationRole, migration_pb2.MigrationRole.ValueType]] = {
    role: migration_pb2.MigrationRole.Value(f"MIGRATION_ROLE_{role.name}") for role in MigrationRole
}
_STATES: Final[dict[MigrationState, migration_pb2.MigrationState.ValueType]] = {
    state: migration_pb2.MigrationState.Value(f"MIGRATION_STATE_{state.name}") for state in MigrationState
}

#: What a host sends at most in one chunk, and what it sends where nobody wishes anything.
CHUNK_BYTES_MAX: Final = 1024 * 1024
CHUNK_BYTES_DEFAULT: Final = 256 * 1024
CHUNK_BYTES_MIN: Final = 4096


def migration_to_proto(record: MigrationRecord) -> migration_pb2.Migration:
    """A migration as this host sees it now."""
    made = migration_pb2.Migration(
        name=record.name,
        uid=record.uid,
        role=_ROLES[record.role],
        state=_STATES[record.state],
        ownership_epoch=record.ownership_epoch,
        source_host=record.source_host,
        target=record.target,
        proof=record.proof,
        reason=record.reason,
    )
    if record.create_unix_ns:
        seconds, nanos = divmod(record.create_unix_ns, NS_PER_S)
        made.create_time.CopyFrom(Timestamp(seconds=seconds, nanos=nanos))
    return made


def chunk_bytes(path: str, wanted: int) -> int:
    """The size of the chunks of an export."""
    if wanted and not CHUNK_BYTES_MIN <= wanted <= CHUNK_BYTES_MAX:
        raise field_invalid(path, f"{CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX} bytes, or 0", wanted)
    return wanted or CHUNK_BYTES_DEFAULT


def image_header_to_proto(image: VmImage, revision: int, size: int, sha256: bytes) -> migration_pb2.VmImageHeader:
    """What stands before the chunks of an image that shows ``revision``."""
    return migration_pb2.VmImageHeader(
        format_version=image.requirements.format_version,
        producer=metadata.version("fpstated"),
        vm=image.vm,
        vm_uid=image.uid,
        ownership_epoch=image.ownership_epoch,
        revision=revision,
        requirements=requirements_to_proto(image.requirements),
        size_bytes=size,
        sha256=sha256,
    )
