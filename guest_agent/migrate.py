"""Moving a VM from host to host: the driver, for an operator's program.

    migrate("unix:/run/a.sock", "unix:/run/b.sock", "vms/web")

The driver keeps nothing: where a migration stands it asks the hosts, so one that was killed is started again with the
same arguments and goes on. It cannot do harm by what it does wrong, or twice, or late: the hosts believe each other's
proofs alone (`Migration.proof`). A failure before the source has committed aborts the migration and the VM runs on
there; after that the only way is forward.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from fpstate.v1 import migration_pb2 as pb

from fpstated.link.tls import ClientTls
from guest_agent.error import HostError
from guest_agent.host import Host
from guest_agent.migration_calls import MigrationCalls
from guest_agent.recovery import Patience, Remedy, remedy

T = TypeVar("T")

PATIENCE_S = 60.0


class MigrateStep(enum.Enum):
    """What a driver is about to do."""

    PREFLIGHT = "preflight"
    BEGIN = "begin"
    EXPORT = "export"
    IMPORT = "import"
    STAGE = "stage"
    COMMIT_SOURCE = "commit at the source"
    COMMIT_TARGET = "commit at the target"


@dataclass(frozen=True, slots=True)
class Migrated:
    """The VM is the target's. `migration` is the name of the move, `ownership_epoch` what the target owns it under."""

    vm: str
    migration: str
    ownership_epoch: int
    source_host: str
    target: str


class Incompatible(Exception):  # noqa: N818 -- what was found, and no error of the hosts
    """The target could not run the VM, which goes on at its source: all that stands against it."""

    def __init__(self, vm: str, found: Sequence[pb.Incompatibility]) -> None:
        super().__init__(f"{vm} cannot go there: " + "; ".join(each.description for each in found))
        self.vm = vm
        self.incompatibilities = tuple(found)


def migrate(
    source: Host | str,
    target: Host | str,
    vm: str,
    *,
    target_address: str = "",
    tls: ClientTls | None = None,
    patience_s: float = PATIENCE_S,
    on_step: Callable[[MigrateStep], None] | None = None,
) -> Migrated:
    """Move `vm` (`vms/{vm}`), or finish a move to the same target that was begun before.

    `source` and `target` are addresses, or hosts that are connected; `target_address` is where guests reach the target,
    by default its address here. A host that does not answer is asked again for `patience_s` seconds. `on_step` is
    called before each step.

    Raises:
        Incompatible: the target could not run the VM. Nothing was begun.
        HostError: a host refused, or stayed away. `VM_MOVED`: the VM lives at a third host.
        ValueError: no address, see `connect`; or no `target_address` where `target` is a channel.
    """
    with _connected(source, tls) as here, _connected(target, tls) as there:
        goes_to = target_address or there.address
        if not goes_to:
            raise ValueError("target_address: expected where guests reach the target, as it is given as a channel")
        return _Move(here, there, vm, goes_to, patience_s, on_step).run()


def abort_migration(
    source: Host | str,
    target: Host | str,
    vm: str,
    *,
    reason: str = "aborted by an operator",
    tls: ClientTls | None = None,
    patience_s: float = PATIENCE_S,
) -> bool:
    """Let the source run `vm` again and the target forget it; False if no migration between them was open.

    Raises:
        HostError: a host refused, or stayed away. `MIGRATION_WRONG_STATE`: it was committed, `migrate` finishes it.
    """
    with _connected(source, tls) as here, _connected(target, tls) as there:
        return _Move(here, there, vm, there.address, patience_s, None).abort(reason)


class _Move:
    """One move. The hosts are asked anew for everything."""

    def __init__(
        self,
        source: Host,
        target: Host,
        vm: str,
        target_address: str,
        patience_s: float,
        on_step: Callable[[MigrateStep], None] | None,
    ) -> None:
        self._vms = source
        self._source = MigrationCalls(source)
        self._target = MigrationCalls(target)
        self._vm = vm
        self._target_address = target_address
        self._patience_s = patience_s
        self._on_step = on_step or (lambda _step: None)

    def run(self) -> Migrated:
        """Go from wherever the migration is to its end."""
        ours = self._begun_before()
        self._tidy(ours.name if ours is not None else "")
        if ours is None:
            ours = self._begin()
        if ours.state == pb.MIGRATION_STATE_BEGUN:
            ours = self._commit_source(ours)
        self._on_step(MigrateStep.COMMIT_TARGET)
        self._patiently(lambda: self._target.commit(ours, proof=ours.proof))
        return Migrated(self._vm, ours.name, ours.ownership_epoch + 1, ours.source_host, ours.target)

    def abort(self, reason: str) -> bool:
        """Abort what is open at the source, and then what is left of it at the target."""
        found = [each for each in self._theirs_or_ours(self._source) if each.state == pb.MIGRATION_STATE_BEGUN]
        for ours in found:
            self._patiently(lambda ours=ours: self._source.abort(ours, reason=reason))  # type: ignore[misc]
        return bool(self._tidy("")) or bool(found)

    # -- where it stands -----------------------------------------------------------------------------------------------

    def _theirs_or_ours(self, calls: MigrationCalls) -> list[pb.Migration]:
        return self._patiently(lambda: calls.list(self._vm))

    def _begun_before(self) -> pb.Migration | None:
        """The source's migration to the same target that is open, or committed and the reason why the VM is gone."""
        try:
            self._patiently(lambda: self._vms.get_vm(self._vm))
            wanted = pb.MIGRATION_STATE_BEGUN
        except HostError as error:
            if error.reason != "VM_MOVED" or error.metadata.get("target") != self._target_address:
                raise
            wanted = pb.MIGRATION_STATE_COMMITTED
        found = [
            each
            for each in self._theirs_or_ours(self._source)
            if (each.role, each.state, each.target) == (pb.MIGRATION_ROLE_SOURCE, wanted, self._target_address)
        ]
        return found[-1] if found else None

    def _tidy(self, current: str) -> int:
        """Settle at the target what the source has settled: a driver before may have been killed in between."""
        settled = 0
        for theirs in self._theirs_or_ours(self._target):
            is_open = theirs.state in (pb.MIGRATION_STATE_IMPORTED, pb.MIGRATION_STATE_STAGED)
            if theirs.name != current and is_open:
                settled += self._settle(theirs)
        return settled

    def _settle(self, theirs: pb.Migration) -> bool:
        try:
            ours = self._patiently(lambda: self._source.get(theirs.name))
        except HostError as error:
            if error.reason != "MIGRATION_NOT_FOUND":
                raise
            return False  # another source's: what it means for us the target will say
        if ours.state == pb.MIGRATION_STATE_ABORTED:
            self._patiently(lambda: self._target.abort(theirs, reason=ours.reason, proof=ours.proof))
            return True
        if ours.state == pb.MIGRATION_STATE_COMMITTED:
            try:
                self._patiently(lambda: self._target.commit(theirs, proof=ours.proof))
            except HostError as error:
                if error.reason != "MIGRATION_WRONG_STATE":
                    raise
                self._patiently(lambda: self._target.abort(theirs, proof=ours.proof))  # another copy counts
            return True
        return False

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _begin(self) -> pb.Migration:
        self._on_step(MigrateStep.PREFLIGHT)
        needed = self._patiently(lambda: self._source.begin(self._vm, self._target_address, validate_only=True))
        found = self._patiently(lambda: self._target.check_compat(needed.requirements))
        if found:
            raise Incompatible(self._vm, found)
        self._on_step(MigrateStep.BEGIN)
        try:
            return self._patiently(lambda: self._source.begin(self._vm, self._target_address)).migration
        except HostError as error:
            ours = self._begun_before() if error.reason == "MIGRATION_IN_PROGRESS" else None
            if ours is None:
                raise
            return ours  # ours, and its answer was lost

    def _commit_source(self, ours: pb.Migration) -> pb.Migration:
        """Stage at the target and commit at the source. What fails before the source has committed is aborted."""
        try:
            staged = self._staged(ours)
            self._on_step(MigrateStep.COMMIT_SOURCE)
        except HostError as error:
            self._give_up(ours, error)
            raise
        try:
            return self._patiently(lambda: self._source.commit(ours, proof=staged.proof))
        except HostError as error:
            if error.reason == "MIGRATION_WRONG_STATE":  # its deadline was faster
                self._give_up(ours, error)
            else:
                error.add_note("whether the source has committed is not known: run the migration again")
            raise

    def _staged(self, ours: pb.Migration) -> pb.Migration:
        """Bring the image over, unless it is there. An import that was aborted there is refused to be staged."""
        known = {each.name: each for each in self._theirs_or_ours(self._target)}
        if ours.name not in known:
            self._on_step(MigrateStep.EXPORT)
            export = self._patiently(lambda: self._source.export_vm(self._vm, migration=ours.name))
            self._on_step(MigrateStep.IMPORT)
            self._patiently(lambda: self._target.import_vm(export, migration=ours.name))
        self._on_step(MigrateStep.STAGE)
        return self._patiently(lambda: self._target.stage(ours))

    def _give_up(self, ours: pb.Migration, error: HostError) -> None:
        """The source runs the VM again, and the target forgets it; where that is not to be had, `error` says so."""
        try:
            self._patiently(lambda: self._source.abort(ours, reason=str(error)))
        except HostError as refused:
            error.add_note(f"the source could not abort ({refused}): at its migration deadline it does so by itself")
            return
        try:
            self._tidy("")
        except HostError as refused:
            error.add_note(f"the target may still hold the image: {refused}")

    def _patiently(self, call: Callable[[], T]) -> T:
        """Make a call again while nobody answers it."""
        patience = Patience(total_s=self._patience_s)
        while True:
            try:
                return call()
            except HostError as error:
                again = remedy(error.refusal) in (Remedy.AGAIN, Remedy.LATER)
                pause_s = patience.pause_s(error.retry_delay_s) if again else None
                if pause_s is None or error.reason == "MIGRATION_IN_PROGRESS":
                    raise
                time.sleep(pause_s)


@contextmanager
def _connected(host: Host | str, tls: ClientTls | None) -> Iterator[Host]:
    """The host, closed again if it was opened here."""
    if isinstance(host, Host):
        yield host
        return
    with Host(host, tls=tls) as opened:
        yield opened
