"""What must hold in every run: checks with names. A violation names its check, and ends the run.

The books here are the checker's own, kept from what went in and out; the machine's are looked at beside them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, Final

from fault_lab.sim.books import ENDED, Books
from fault_lab.sim.shelf.book import Book
from fault_lab.sim.shelf.deciders import DeciderBook
from fault_lab.sim.shelf.exits import ExitBook
from fault_lab.sim.shelf.leases import LeaseBook
from fault_lab.sim.shelf.limits import LimitBook
from fault_lab.sim.shelf.numbers import NumberBook
from fault_lab.sim.shelf.refusals import RefusalBook
from fpu_core.errors import CoreBug
from guest_agent.outcome import Blocked, Outcome, Pending, Refusal
from guest_agent.script import ScriptReport
from host_agent import commands as c
from host_agent.effects import FaultChanged, OutcomeReady, VcpusTaken
from host_agent.events import BlockedOutcome, PendingOutcome, RejectedOutcome
from host_agent.events import Outcome as HostOutcome
from host_agent.exits import ExitRecord, ExitState
from host_agent.kvm.lifecycle import VcpuState
from host_agent.migration_commands import CommitMigration
from host_agent.migrations import MigrationRole
from host_agent.state import VcpuSide

if TYPE_CHECKING:
    from fault_lab.sim.guest import GuestNode
    from fault_lab.sim.host import HostNode
    from fault_lab.sim.world import World

#: After every step.
ALWAYS: Final = {
    "invariants": "every invariant of the core and of the host agent holds after every command",
    "one-exit-a-failure": "a growth that fails opens one exit, or brings the one there is a new generation",
    "one-decision-a-generation": "of each generation of an exit at most one decision is applied",
    "no-decision-after-end": "no decision is applied to an exit that has ended, or to a vCPU that is gone",
    "epochs-rise": "every epoch that a host hands out is higher than those before",
    "epochs-fence": "what an older session or control asks for is not done",
    "ack-after-commit": "nothing leaves a host before everything that it may speak of is durable",
    "acknowledged-is-there": "what was acknowledged is there after a restart",
    "numbers-once": "a vCPU's events are taken in order, without a gap, each once",
    "final-once": "an event has one final outcome, whoever hears of it and how often",
    "recovered-same-outcomes": "each record leads to the outcome that it had",
    "recovered-same-digest": "where nothing was lost, a host comes back as it was, to the byte",
    "guest-sees-its-bytes": "a guest reads what it has loaded, and takes no exception that its script does not expect",
    "session-goes-on": "an agent finds its vCPUs' numbers where it left them",
    "one-owner": "a VM that moves has one owner at most",
    "task-reads-its-bytes": "every host task holds what it has loaded, in the registers or in its image, to the byte",
    "frame-tells-the-truth": "a signal frame has the registers of the program, and no byte of anybody else's",
    "sigreturn-brings-back": "sigreturn restores a frame that is good, and refuses one that is spoilt",
    "ptrace-takes-all-or-nothing": "a debugger writes the whole state, or nothing",
    "interrupt-keeps-off": "an interrupt uses the FPU where it may, and nowhere else",
    "workers-have-no-registers": "a kernel thread or user worker is not asked about registers",
    "commands-end": "the kernel does not go round in a circle",
    "get-xsave-tells-the-truth": "KVM_GET_XSAVE2 gives what the vCPU holds, of what its CPUID has, and zeros elsewhere",
    "set-xsave-takes-what-it-must": "KVM_SET_XSAVE takes what the host supports, and refuses what cannot be loaded",
    "restore-is-what-was-saved": "what KVM_SET_XSAVE has taken, KVM_GET_XSAVE2 gives again",
    "pkru-needs-protection-keys": "PKRU is managed only where the kernel has enabled protection keys",
    "cpuid-tells-the-truth": "CPUID offers both tile components or neither, and the size that an image has",
    "heard-in-order": "an agent hears what each of its numbers has come to, one after the other",
    "repeated-once": "what is asked again, by number or by request id, is not done again and has the same answer",
    "attempts-are-decided": "a retry is one attempt more, and there is none that was not decided",
    "retries-end": "a controller makes no more tries than its policy has",
    "deadline-kept": "an exit goes on by itself when it is due: not before, and not later",
    "decision-is-done": "a resolved exit has come to what was decided: the write is there, or it is not",
    "parked-stands-still": "a parked vCPU has the XCR0 and the XFD that it had before its write",
    "cause-is-told": "an exit says what has failed: memory, or the permission",
    "leases-kept": "a session, or a control, lasts as long as was promised, and no longer",
    "refused-changes-nothing": "a command that is refused has made nothing and taken nothing",
    "within-limits": "no account has taken more than its limit",
    "decides-on-newest": "a controller decides about the newest generation that it has seen",
    "decides-once": "a controller decides about a generation once, as long as it has the same control",
    "decides-on-all": "a controller decides about every generation that it is shown, as long as it is the newest",
    "decider-in-charge": "who decides about a VM is its own controller, where it has one",
}
#: Those of them that the books of the shelf are for: what is right depends on earlier commands and on time.
OF_BOOKS: Final = frozenset(
    {
        *("heard-in-order", "repeated-once", "attempts-are-decided", "retries-end", "deadline-kept"),
        *("decision-is-done", "parked-stands-still", "cause-is-told", "leases-kept", "refused-changes-nothing"),
        *("within-limits", "decides-on-newest", "decides-once", "decides-on-all", "decider-in-charge"),
    }
)
#: At the end of ``settle``.
EVENTUALLY: Final = {
    "no-stuck-exit": "no exit is open any more, unless it is paused for a person",
    "guests-end": "every guest has come to its end, unless its vCPU is paused for a person",
    "tasks-end": "every row of host tasks was played to its end",
    "moves-end": "a VM that was to move is at its target",
    "directives-arrive": "an agent that is attached has acknowledged every directive",
}


class Violation(Exception):  # noqa: N818 -- what was found, and the point of it all
    """A check does not hold."""

    def __init__(self, check: str, text: str) -> None:
        super().__init__(f"{check}: {text}")
        self.check = check
        self.text = text


class Rules:
    """The checks of one run and their books; without ``books`` (those of the shelf) all but ``OF_BOOKS``."""

    def __init__(self, world: World, always: Collection[str], *, books: bool = True) -> None:
        self._world = world
        self._checked = frozenset(always) or frozenset(ALWAYS)
        self._books = Books(self.fail)
        #: Newest session of each vCPU and newest control of each scope, by host.
        self._sessions: dict[tuple[str, str], int] = {}
        self._controls: dict[tuple[str, str], int] = {}
        self._scopes: dict[str, str] = {}
        self._acknowledged_epochs: dict[str, int] = {}
        #: What an applied command found before it: the exits and their generations, the requests that were known.
        self._before: tuple[int, ExitState] | None = None
        self._known = False
        self.deciders = DeciderBook(self.fail)
        others = (ExitBook, LeaseBook, LimitBook, NumberBook, RefusalBook)
        self._shelf: tuple[Book, ...] = (self.deciders, *(book(self.fail) for book in others)) if books else ()

    @property
    def decisions(self) -> set[str]:
        """The kinds of all decisions that were applied."""
        return self._books.decisions

    def fail(self, check: str, text: str) -> None:
        """A check does not hold; nothing to do where the plan leaves it out."""
        if check in self._checked:
            raise Violation(check, text)

    # -- around a command ----------------------------------------------------------------------------------------------

    def before(self, host: HostNode, command: c.Command) -> None:
        """Look at what a decision is about before it is applied."""
        for book in self._shelf:
            book.before(host, command)
        self._before = None
        if isinstance(command, c.ResolveExit):
            state = host.machine.state
            record = state.exits.get(command.exit) or state.resolved_exits.get(command.exit)
            self._known = command.request_id in state.requests
            self._before = (record.generation, record.state) if record is not None else None

    def after(self, host: HostNode, command: c.Command, result: object, effects: list[Any]) -> None:
        """Look at what a command has done."""
        if "invariants" in self._checked:
            try:
                host.machine.check()
            except CoreBug as bug:
                self.fail("invariants", str(bug))
        if not isinstance(result, Exception):
            self._carried_out(host, command, result)
        self._one_owner()
        for effect in effects:
            match effect:
                case VcpusTaken(epoch=epoch, vcpus=vcpus):
                    self._books.epoch_given(host.name, epoch)
                    self._sessions.update(((host.name, vcpu), epoch) for vcpu in vcpus)
                case _:
                    pass
        self._failures(effects, result)
        for book in self._shelf:
            book.after(host, command, result, effects)

    def _carried_out(self, host: HostNode, command: c.Command, result: object) -> None:
        match command:
            case c.SubmitBatch():
                self._submitted(host, command, result)
            case c.ResolveExit():
                self._resolved(host, command)
            case c.ResetVm():
                self.disturbs(command.vm)
            case c.AcquireControl():
                self._books.epoch_given(host.name, getattr(result, "epoch", 0))
                self._controls[host.name, command.scope] = getattr(result, "epoch", 0)
                self._scopes[getattr(result, "name", "")] = command.scope
            case CommitMigration():
                self._arrived(host, command.migration)
            case _:
                pass

    def _submitted(self, host: HostNode, command: c.SubmitBatch, result: Any) -> None:  # noqa: ANN401
        state = host.machine.state
        several = len(command.events) > 1
        for event, outcome in zip(command.events, result, strict=True):
            vcpu = state.sessions[command.session].vcpus.get(event.vcpu) if command.session in state.sessions else None
            if vcpu is None:
                newest = self._sessions.get((host.name, event.vcpu), 0)
                taken = isinstance(outcome.kind, BlockedOutcome | RejectedOutcome)
                if not taken and command.epoch < newest:
                    self.fail("epochs-fence", f"{event.vcpu}: epoch {command.epoch} is taken after {newest}")
                continue
            newest = self._sessions.get((host.name, event.vcpu), 0)
            side = state.side(vcpu)
            last = self._books.taken.get((host.name, side.uid), 0)
            now = side.next_seq - 1
            if now == last or (several and event.seq <= last):
                continue
            if command.epoch < newest:
                self.fail("epochs-fence", f"{event.vcpu}: event {now} of epoch {command.epoch} is taken after {newest}")
            # Of several, each takes one number, and the last of them the last.
            taken_as = last + 1 if several and event is not command.events[-1] else now
            self._books.event_taken((host.name, side.uid), event.vcpu, event.seq, taken_as)

    def _arrived(self, host: HostNode, migration: str) -> None:
        """A VM is a host's from now on: nothing that was acknowledged elsewhere is lost, and its exits go on here."""
        state = host.machine.state
        record = state.migrations[migration]
        vm = state.vms.get(record.vm)
        if record.role is not MigrationRole.TARGET or vm is None:
            return
        for vcpu in vm.kvm.vcpus.values():
            side = state.side(vcpu)
            if (host.name, side.uid) not in self._books.taken:
                self._books.expects((host.name, side.uid), side.uid, side.next_seq)
            if side.exit is not None and self._books.exits.get((side.uid, side.exit.name), (0, ""))[1] in ENDED:
                self._books.exits[side.uid, side.exit.name] = side.exit.generation, side.exit.state.value

    def _one_owner(self) -> None:
        """Of the hosts that run, at most one has a VM."""
        for mover in self._world.movers.values():
            hosts = self._world.hosts.values()
            owners = [host.name for host in hosts if host.up and mover.vm in host.machine.state.vms]
            if len(owners) > 1:
                self.fail("one-owner", f"{mover.vm} is owned by {' and '.join(owners)}")

    def _resolved(self, host: HostNode, command: c.ResolveExit) -> None:
        """A decision that was applied has changed its exit in this very revision."""
        state = host.machine.state
        record = state.exits.get(command.exit) or state.resolved_exits.get(command.exit)
        before = self._before
        if record is None or before is None or self._known or record.updated_revision != state.revision:
            return
        if (record.generation, record.state) == before:
            return
        generation, was = before
        kind = command.decision.kind.name
        if was in (ExitState.RESOLVED, ExitState.CANCELLED):
            self.fail("no-decision-after-end", f"{record.name}: {kind} after it was {was.value}")
        if generation != command.generation:
            text = f"{record.name}: {kind} for generation {command.generation} is applied to {generation}"
            self.fail("one-decision-a-generation", text)
        newest = self._controls.get((host.name, self._scopes.get(command.control, "")), 0)
        if command.control_epoch < newest:
            self.fail("epochs-fence", f"{record.name}: a decision of epoch {command.control_epoch} after {newest}")
        self._books.decision_applied((record.vcpu_uid, record.name), record.name, command.generation, kind)

    def _failures(self, effects: list[Any], result: object) -> None:
        """Each growth that a fault made fail has parked its vCPU, or has brought its exit a new generation."""
        fired = [effect.hit for effect in effects if isinstance(effect, FaultChanged) and effect.kind == "FIRED"]
        failed = [hit for hit in fired if hit is not None and hit.point.startswith("fpstate.realloc.")]
        if not failed:
            return
        outcomes = [effect.outcome for effect in effects if isinstance(effect, OutcomeReady)]
        outcomes += [each for each in result if isinstance(each, HostOutcome)] if isinstance(result, tuple) else []
        for hit in failed:
            if hit.trigger not in ("Xsetbv", "Wrmsr"):
                continue
            pending = [each for each in outcomes if each.vcpu == hit.vcpu and isinstance(each.kind, PendingOutcome)]
            if not pending:
                self.fail("one-exit-a-failure", f"{hit.vcpu}: {hit.point} failed on {hit.trigger}, and no exit says so")

    def exit_changed(self, host: HostNode, name: str) -> None:
        """An exit was opened, or has gone on: the history has it, and one (vCPU, number) has one exit."""
        state = host.machine.state
        record = state.exits.get(name) or state.resolved_exits.get(name)
        if record is None:
            return
        self._books.exit_is((record.vcpu_uid, record.name), name, record.generation, record.state.value)
        if record.decision is not None:
            self._books.exit_decided(name, record.decision.name)
        self._world.record(
            "exit",
            node=host.name,
            exit=name,
            generation=record.generation,
            state=record.state.value,
            exit_cause=record.cause.value,
            decision=record.decision.name if record.decision else None,
            by=record.decided_by or None,
        )

    # -- what leaves, and what comes back ------------------------------------------------------------------------------

    def leaves(self, host: HostNode, stamp: int) -> None:
        """Something leaves the host that may speak of record ``stamp`` and all before."""
        if stamp > host.journal.durable:
            text = f"{host.name} answers for record {stamp} with {host.journal.durable} durable"
            self.fail("ack-after-commit", text)

    def acknowledged(self, host: HostNode, method: str, reply: object) -> None:
        """An answer leaves: what it promises has to be there from now on."""
        epoch = getattr(reply, "epoch", None) if method == "AcquireControl" else None
        key = getattr(reply, "key", None)
        epoch = key.epoch if key is not None else epoch
        if epoch is not None:
            self._acknowledged_epochs[host.name] = max(epoch, self._acknowledged_epochs.get(host.name, 0))

    def recovered(self, host: HostNode) -> None:
        """A host has come back: the books follow what it has, and what was acknowledged must be in there."""
        state = host.machine.state
        for book in self._shelf:
            book.recovered(host)
        if host.ephemeral:
            self._books.epochs.pop(host.name, None)
            self._acknowledged_epochs.pop(host.name, None)
            self._forget(host)
            return
        known = self._acknowledged_epochs.get(host.name, 0)
        if state.epoch < known:
            self.fail("acknowledged-is-there", f"{host.name} is at epoch {state.epoch}, and has handed out {known}")
        self._books.epochs[host.name] = state.epoch
        vcpus = [vcpu for vm in state.vms.values() for vcpu in vm.kvm.vcpus.values()]
        mine = {side.uid: side for vcpu in vcpus if isinstance(side := vcpu.agent, VcpuSide)}
        for uid, side in mine.items():
            self._books.expects((host.name, uid), uid, side.next_seq)
        self._sessions = {key: value for key, value in self._sessions.items() if key[0] != host.name}
        self._controls = {key: value for key, value in self._controls.items() if key[0] != host.name}
        for session in state.sessions.values():
            self._sessions.update(((host.name, vcpu), session.epoch) for vcpu in session.vcpus)
        for control in state.controls.values():
            self._controls[host.name, control.scope] = control.epoch
        there: dict[tuple[str, str], ExitRecord] = {}
        for record in (*state.exits.values(), *state.resolved_exits.values()):
            there[record.vcpu_uid, record.name] = record
        books = self._books
        others = [other for other in self._world.hosts.values() if other is not host]
        elsewhere = {name for other in others for name in other.machine.state.vms} - state.vms.keys()
        kept = {key: each for key, each in books.exits.items() if _vm_of(key[1]) in elsewhere}
        books.exits = kept | {key: (record.generation, record.state.value) for key, record in there.items()}
        books.decided = {
            key: kind
            for key, kind in books.decided.items()
            if _vm_of(key[1]) in elsewhere or (key[:2] in there and key[2] in there[key[:2]].winners)
        }

    def _forget(self, host: HostNode) -> None:
        """A host without a journal begins anew, and gives its vCPUs the uids that it gave before."""
        books = self._books
        books.taken = {key: number for key, number in books.taken.items() if key[0] != host.name}
        elsewhere = {name for name in self._world.guests if self._world.host_of(name) is not host}
        books.exits = {key: each for key, each in books.exits.items() if _vm_of(key[1]) in elsewhere}
        books.decided = {key: each for key, each in books.decided.items() if _vm_of(key[1]) in elsewhere}

    # -- guests --------------------------------------------------------------------------------------------------------

    def guest_heard(self, guest: GuestNode, vcpu: str, uid: str, seq: int, outcome: Outcome) -> None:
        """An agent has heard an outcome."""
        if isinstance(outcome, Pending | Blocked) or self._world.host_of(guest.name).ephemeral:
            return
        for book in self._shelf:
            book.heard(guest, vcpu, uid, seq)
        self._books.outcome_heard(uid, vcpu, seq, outcome)

    def guest_ended(self, vcpu: str, report: ScriptReport) -> None:
        """A script has come to its end."""
        self._books.guest_ended(vcpu, report.outcome.value, report.reason)

    def disturbs(self, name: str) -> None:
        """A vCPU, or every vCPU of a VM, has met what its script cannot expect: from now on it may end by a fault."""
        self._books.disturbed.add(name)

    def is_disturbed(self, vm: str, vcpu: str) -> bool:
        """Whether it has."""
        return not self._books.disturbed.isdisjoint((vm, vcpu))

    def heard_through(self, uid: str) -> int:
        """The highest number of a vCPU, by its uid, whose outcome its agent knows; 0 for none."""
        return self._books.heard.get(uid, 0)

    def rejected(self, guest: GuestNode, vcpu: str, refusal: Refusal) -> None:
        """A script's event was found to be a mistake."""
        if refusal.reason == "INTERNAL_INVARIANT":
            self.fail("invariants", f"{vcpu}: {refusal.message}")
        self.fail("guest-sees-its-bytes", f"{guest.name}: {vcpu}: {refusal.reason}: {refusal.message}")

    def blocked(self, guest: GuestNode, vcpu: str, outcome: Blocked) -> None:
        """An agent sends nothing behind an event that is pending; who is told that it did was not told of that."""
        self.session_lost(guest, f"{vcpu}: sent behind an event that is pending: {outcome}")

    def session_lost(self, guest: GuestNode, text: str) -> None:
        """An agent and its host are at different numbers."""
        if not self._world.host_of(guest.name).ephemeral:
            self.fail("session-goes-on", text)

    # -- the end -------------------------------------------------------------------------------------------------------

    def eventually(self, wanted: Collection[str]) -> None:
        """After everything is mended and has had its time: nothing is left hanging."""
        checks = {"no-stuck-exit": self._stuck, "guests-end": self._unfinished, "tasks-end": self._unplayed}
        checks["moves-end"] = self._unmoved
        checks["directives-arrive"] = self._unheard
        for name in wanted or EVENTUALLY:
            for text in checks[name]():
                raise Violation(name, text)

    def at_rest(self) -> bool:
        """Whether nothing is left to do but to renew leases."""
        left = (self._unfinished, self._stuck, self._unplayed, self._unheard, self._unmoved)
        return not any(any(each()) for each in left)

    def _unplayed(self) -> Iterator[str]:
        for host in self._world.hosts.values():
            for play in host.plays:
                if not play.over:
                    yield f"{host.name}: {play.done} of {play.events} acts for {play.vm}"

    def _unmoved(self) -> Iterator[str]:
        for mover in self._world.movers.values():
            if not mover.over:
                yield f"{mover.name} has not come to its end"

    def _unheard(self) -> Iterator[str]:
        for guest in self._world.guests.values():
            if not guest.attached:
                continue
            state = self._world.host_of(guest.name).machine.state
            for session in state.sessions.values():
                for directive in session.directives.values():
                    if directive.vcpu.startswith(f"{guest.name}/vcpus/"):
                        yield f"{directive.vcpu}: {directive.kind} {directive.id} is not acknowledged"

    def _stuck(self) -> Iterator[str]:
        for host in self._world.hosts.values():
            for record in host.machine.state.exits.values():
                if record.state is not ExitState.PAUSED:
                    yield f"{record.name} is {record.state.value} at generation {record.generation}"

    def _unfinished(self) -> Iterator[str]:
        for guest in self._world.guests.values():
            state = self._world.host_of(guest.name).machine.state
            for vcpu in guest.unfinished:
                vm = state.vms.get(guest.name)
                found = vm.kvm.vcpus.get(int(vcpu.rpartition("/")[2])) if vm is not None else None
                if found is None or found.state is not VcpuState.PAUSED:
                    yield f"{vcpu} has not come to its end: {found.state.value if found else 'it is not there'}"


def _vm_of(exit_name: str) -> str:
    return exit_name.partition("/vcpus/")[0]
