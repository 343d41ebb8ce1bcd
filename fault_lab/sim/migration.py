"""Calls of MigrationService, as a node makes them and as a host answers them: values, and no record of a host's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from host_agent import migration_commands as m
from host_agent.image_form import pack_image
from host_agent.migrating import find_migration
from host_agent.migrations import MigrationRecord, MigrationRole, MigrationState
from host_agent.state import HostState
from host_agent.vm_export import find_export, image_of


@dataclass(frozen=True, slots=True)
class ListMigrations:
    """The migrations of a VM on a host."""

    vm: str


@dataclass(frozen=True, slots=True)
class GetMigration:
    """One migration as a host sees it."""

    name: str


@dataclass(frozen=True, slots=True)
class ExportVm:
    """The image of a VM that is leaving."""

    vm: str
    migration: str


@dataclass(frozen=True, slots=True)
class Migration:
    """A migration as a host has told of it; ``proof`` is what the other host wants to see."""

    name: str
    source: bool
    state: MigrationState
    epoch: int
    target: str
    proof: str
    reason: str

    @property
    def open(self) -> bool:
        """Whether something is still to come on the host that has told."""
        return self.state.open


@dataclass(frozen=True, slots=True)
class Image:
    """An image on its way."""

    data: bytes
    sha256: str


def told(record: MigrationRecord) -> Migration:
    """A migration as it is now."""
    source = record.role is MigrationRole.SOURCE
    return Migration(
        record.name, source, record.state, record.ownership_epoch, record.target, record.proof, record.reason
    )


def look(state: HostState, request: ListMigrations | GetMigration | ExportVm) -> object:
    """Answer a call that changes nothing. Raises ``Refused``."""
    match request:
        case ListMigrations(vm=vm):
            return tuple(told(record) for record in state.migrations.values() if record.vm == vm)
        case GetMigration(name=name):
            return told(find_migration(state, name))
        case ExportVm(vm=vm, migration=migration):
            data = pack_image(image_of(state, *find_export(state, vm, migration)))
            return Image(data, hashlib.sha256(data).hexdigest())


#: The methods that change something, by their commands.
COMMANDS = {
    "BeginMigration": m.BeginMigration,
    "ImportVm": m.ImportVm,
    "StageMigration": m.StageMigration,
    "CommitMigration": m.CommitMigration,
    "AbortMigration": m.AbortMigration,
}
#: Those that look.
LOOKS = ("ListMigrations", "GetMigration", "ExportVm")
