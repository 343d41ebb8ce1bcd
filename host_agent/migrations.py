"""A migration as one of the two hosts sees it, and what is left of a VM that has gone.

    source    BEGUN     --proof that the target has staged----> COMMITTED   the decisive record: the VM has gone
              BEGUN     --abort, or the deadline--------------> ABORTED     the VM runs on
    target    IMPORTED  --stage-------------------------------> STAGED
              STAGED    --proof that the source has committed-> COMMITTED   the VM is this host's
              STAGED    --proof that the source has aborted---> ABORTED
              IMPORTED  --abort-------------------------------> ABORTED

Nobody believes a driver. What a host did shows in a proof that it hands out with that state and not before: texts that
the source makes when the migration begins, of which the target gets one, to show once it has staged, and the digests of
the other two. An image may come to several hosts: each has a ticket of its own, shows it with its proof, and the source
commits to one, whose ticket is in its proof. So no order of calls, repeated, lost or late, makes two owners, or lets
the copy that counts be forgotten.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from host_agent.state import VmRecord


class MigrationRole(enum.Enum):
    """On which side a host stands. Names as on the wire."""

    SOURCE = enum.auto()
    TARGET = enum.auto()


class MigrationState(enum.Enum):
    """How far a migration has come on one host. Names as on the wire."""

    BEGUN = enum.auto()
    IMPORTED = enum.auto()
    STAGED = enum.auto()
    COMMITTED = enum.auto()
    ABORTED = enum.auto()

    @property
    def open(self) -> bool:
        """Whether something is still to come."""
        return self in (MigrationState.BEGUN, MigrationState.IMPORTED, MigrationState.STAGED)


@dataclass(frozen=True, slots=True)
class Proofs:
    """What shows that a host has come to a state. The target has ``staged``, and of the others their digests."""

    staged: str
    committed: str
    aborted: str


def make_proofs(uid: str, boot_id: str) -> Proofs:
    """Three texts that nobody else comes to by mistake. They guard against mistakes; who may call guards the rest."""
    made = (
        hashlib.sha256(f"{boot_id}/{uid}/{what}".encode()).hexdigest() for what in ("staged", "committed", "aborted")
    )
    return Proofs(*made)


def proof_digest(proof: str) -> str:
    """What the target knows of a proof that it waits for; the ticket, if there is one, does not count."""
    return hashlib.sha256(proof.partition(".")[0].encode()).hexdigest()


def ticket_of(proof: str) -> str:
    """Whose copy a proof speaks of; empty for none."""
    return proof.partition(".")[2]


@dataclass(slots=True, eq=False)
class MigrationRecord:
    """One move of one VM on one of its hosts. ``name`` is ``{vm}/migrations/{id}``, the same on both.

    ``ownership_epoch`` is the VM's at its source; the target owns it under the next one. ``proofs`` are the source's
    texts; a target has the digests in place of the last two. ``begun_ns`` and ``deadline_ns`` are this host's clock,
    ``create_unix_ns`` is the time of day.
    """

    name: str
    uid: str
    vm: str
    vm_uid: str
    role: MigrationRole
    state: MigrationState
    ownership_epoch: int
    source_host: str
    target: str
    proofs: Proofs
    begun_ns: int
    create_unix_ns: int = 0
    #: Whose copy it is: a target's own, made when it imports; at the source, of the target that it has committed to.
    ticket: str = ""
    #: When the source gives up by itself; None on a target.
    deadline_ns: int | None = None
    #: Why it was aborted.
    reason: str = ""
    #: IMPORTED: what came, and its digest, which is kept.
    image: bytes = b""
    sha256: str = ""
    #: STAGED: the VM, whole and in nobody's books yet, and what its containers take in bytes.
    staged: VmRecord | None = None
    reserved_bytes: int = 0

    @property
    def proof(self) -> str:
        """What this host has to show for its state; nothing until there is something."""
        match self.role, self.state:
            case MigrationRole.TARGET, MigrationState.STAGED:
                return f"{self.proofs.staged}.{self.ticket}"
            case MigrationRole.SOURCE, MigrationState.COMMITTED:
                return f"{self.proofs.committed}.{self.ticket}"
            case MigrationRole.SOURCE, MigrationState.ABORTED:
                return self.proofs.aborted
            case _:
                return ""


@dataclass(frozen=True, slots=True)
class Moved:
    """A VM that was here: where it is, under which epoch it left, and the number of the directive that says so."""

    vm: str
    uid: str
    target: str
    ownership_epoch: int
    migration: str
    directive: int
