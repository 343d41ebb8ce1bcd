"""An operator as a node, who moves a VM to another host: the steps of ``guest_agent.migrate``, in their order.

It keeps nothing. Whoever starts it again asks both hosts where the move stands, and goes on from there.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.draw import draw_between, subseed
from fault_lab.sim.migration import ExportVm, GetMigration, Image, ListMigrations, Migration
from fault_lab.sim.node import Node
from fault_lab.sim.task import Call, Sleep, Step, Task
from fault_lab.wire.duration import duration_ns
from guest_agent.outcome import Refusal
from guest_agent.recovery import Remedy, remedy
from host_agent import migration_commands as m
from host_agent.migrations import MigrationState

if TYPE_CHECKING:
    from fault_lab.sim.world import World

_S: Final = 1_000_000_000
_CALL_NS: Final = 10 * _S
#: Calls are made again for so long. Source: guest_agent/migrate.py.
_PATIENCE_NS: Final = 60 * _S
_PAUSE_NS: Final = (_S // 10, 2 * _S)


class _RefusedError(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason or refusal.code)
        self.refusal = refusal


class MoverNode(Node):
    """One move of one VM, ``vm``. ``over`` is true when it is the target's."""

    def __init__(self, world: World, planned: plan_pb2.PlannedMigration, source: str, seed: int) -> None:
        super().__init__(world, planned.name)
        self.vm = f"vms/{planned.vm}"
        self._source = source
        self._target = planned.target
        self._after_ns = duration_ns("after", planned.after) if planned.HasField("after") else 0
        self._draws = 0
        self.over = False
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Draw from another seed from now on."""
        self._seed = subseed(seed, f"mover/{self.name}")

    def boot(self) -> None:
        """Move the VM, or finish what was begun."""
        if not self.over:
            self.spawn(self._move())

    def _move(self) -> Task:
        yield Sleep(max(0, self._after_ns - self.world.now_ns))
        while not self.over:
            try:
                yield from self._once()
                self.over = True
                self.world.record("migration", node=self.name, vm=self.vm, state="moved", target=self._target)
            except _RefusedError as error:
                self.world.record("migration", node=self.name, vm=self.vm, state="refused", why=str(error))
                yield Sleep(self._pause_ns(_PAUSE_NS[1]))

    # -- the steps -----------------------------------------------------------------------------------------------------

    def _once(self) -> Generator[Step, Any, None]:
        """Go from wherever the move is to its end. Raises ``_RefusedError``."""
        ours = yield from self._begun_before()
        yield from self._tidy(ours.name if ours is not None else "")
        if ours is None:
            ours = yield from self._ask(
                self._source, "BeginMigration", m.BeginMigration(vm=self.vm, target=self._target)
            )
        if ours.state is MigrationState.BEGUN:
            ours = yield from self._commit_source(ours)
        yield from self._commit(self._target, ours, ours.proof)

    def _begun_before(self) -> Generator[Step, Any, Migration | None]:
        found = yield from self._ask(self._source, "ListMigrations", ListMigrations(self.vm))
        wanted = (MigrationState.BEGUN, MigrationState.COMMITTED)
        mine = [each for each in found if each.source and each.target == self._target and each.state in wanted]
        return mine[-1] if mine else None

    def _commit_source(self, ours: Migration) -> Generator[Step, Any, Migration]:
        """Stage at the target and commit at the source. What fails before the source has committed is aborted."""
        try:
            staged = yield from self._staged(ours)
        except _RefusedError:
            yield from self._give_up(ours)
            raise
        return (yield from self._commit(self._source, ours, staged.proof))

    def _staged(self, ours: Migration) -> Generator[Step, Any, Migration]:
        theirs = yield from self._ask(self._target, "ListMigrations", ListMigrations(self.vm))
        if ours.name not in [each.name for each in theirs]:
            image = yield from self._ask(self._source, "ExportVm", ExportVm(self.vm, ours.name))
            assert isinstance(image, Image)
            command = m.ImportVm(image=image.data, sha256=image.sha256, migration=ours.name)
            yield from self._ask(self._target, "ImportVm", command)
        stage = m.StageMigration(migration=ours.name, ownership_epoch=ours.epoch)
        staged: Migration = yield from self._ask(self._target, "StageMigration", stage)
        return staged

    def _commit(self, host: str, ours: Migration, proof: str) -> Generator[Step, Any, Migration]:
        command = m.CommitMigration(migration=ours.name, ownership_epoch=ours.epoch, proof=proof)
        committed: Migration = yield from self._ask(host, "CommitMigration", command)
        return committed

    def _give_up(self, ours: Migration) -> Generator[Step, Any, None]:
        command = m.AbortMigration(migration=ours.name, ownership_epoch=ours.epoch, reason="it could not be staged")
        yield from self._ask(self._source, "AbortMigration", command)
        yield from self._tidy("")

    def _tidy(self, current: str) -> Generator[Step, Any, None]:
        """Settle at the target what the source has settled: a driver before may have ended in between."""
        found = yield from self._ask(self._target, "ListMigrations", ListMigrations(self.vm))
        for theirs in found:
            if theirs.name == current or not theirs.open:
                continue
            ours = yield from self._ask(self._source, "GetMigration", GetMigration(theirs.name))
            if ours.state is MigrationState.ABORTED:
                command = m.AbortMigration(
                    migration=theirs.name, ownership_epoch=theirs.epoch, reason=ours.reason, proof=ours.proof
                )
                yield from self._ask(self._target, "AbortMigration", command)
            elif ours.state is MigrationState.COMMITTED:
                yield from self._commit(self._target, theirs, ours.proof)

    def _ask(self, host: str, method: str, request: object) -> Generator[Step, Any, Any]:
        """Make a call again while nobody answers it. Raises ``_RefusedError``."""
        until_ns, longest_ns = self.world.now_ns + _PATIENCE_NS, _PAUSE_NS[0]
        while True:
            reply = yield Call(method, request, _CALL_NS, host=host)
            if not isinstance(reply, Refusal):
                return reply
            again = remedy(reply) in (Remedy.AGAIN, Remedy.LATER) and reply.reason != "MIGRATION_IN_PROGRESS"
            if not again or self.world.now_ns >= until_ns:
                raise _RefusedError(reply)
            yield Sleep(max(self._pause_ns(longest_ns), round((reply.retry_delay_s or 0.0) * _S)))
            longest_ns = min(2 * longest_ns, _PAUSE_NS[1])

    def _pause_ns(self, most: int) -> int:
        self._draws += 1
        return draw_between(self._seed, "pause", self.name, self._draws, low=most // 2, high=most)
