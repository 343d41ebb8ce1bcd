"""The commands that move a VM from host to host. ``host_agent.commands`` has them too."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginMigration:
    """Stop a VM on its source."""

    vm: str
    target: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportVm:
    """Take an image: of ``migration``, or for none as a VM of its own named ``name``, empty for the name it had.

    Two images are the same where their digests are.
    """

    image: bytes = field(compare=False)
    sha256: str
    migration: str = ""
    name: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMigration:
    """Take permission and memory on the target."""

    migration: str
    ownership_epoch: int
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitMigration:
    """Give the VM up, or own it, whichever host this is. ``proof`` is what the other host has to show.

    ``force``: without one, on the word of an operator who knows that the other host will never run the VM.
    """

    migration: str
    ownership_epoch: int
    proof: str = ""
    force: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortMigration:
    """Run the VM again, or forget what came of it. A target that has staged asks for ``proof``; ``force`` as above."""

    migration: str
    ownership_epoch: int
    reason: str = ""
    proof: str = ""
    force: bool = False
    request_id: str = ""


MigrationCommand = BeginMigration | ImportVm | StageMigration | CommitMigration | AbortMigration
