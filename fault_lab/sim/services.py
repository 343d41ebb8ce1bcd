"""The host's services as a node has them: what each method does with a request, and who waits for what.

What the shells of ``host_agent.service`` do, without gRPC: submit a command, answer with what came of it. A method that
has no answer yet returns ``Later``, and the host answers when there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from fault_lab.sim import wire
from fault_lab.sim.attach import Hello, Streams
from fault_lab.sim.duplex import DuplexExchange
from fault_lab.sim.migration import COMMANDS, LOOKS, ExportVm, GetMigration, ListMigrations, look, told
from fault_lab.sim.reads import READS, Read
from fault_lab.sim.rpc import Exchange, StreamExchange
from guest_agent.outcome import Refusal
from host_agent import commands as c
from host_agent.errors import Refused
from host_agent.events import Outcome
from host_agent.exits import ExitRecord
from host_agent.sessions import find_outcome
from vmm_controller.policy import ExitView

if TYPE_CHECKING:
    from fault_lab.sim.host import HostNode

_CREDITS: Final = 256


class Later:
    """The answer comes later."""


_LATER: Final = Later()


@dataclass(frozen=True, slots=True)
class WaitOutcome:
    """Wait for the final outcome of an event."""

    session: str
    epoch: int
    vcpu: str
    seq: int


@dataclass(frozen=True, slots=True)
class ListExits:
    """The exits of a VM, or of all, that are not settled."""

    vm: str


@dataclass(frozen=True, slots=True)
class Listed:
    """The answer to that: views, and the revision they are of."""

    exits: tuple[ExitView, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class GetExit:
    """One exit."""

    name: str


@dataclass(frozen=True, slots=True)
class WatchExits:
    """Every exit that is open or has changed since a revision, then every change."""

    vm: str
    from_revision: int


class Service:
    """Who waits for what of one process of a host."""

    def __init__(self, host: HostNode) -> None:
        self._host = host
        self._waits: dict[tuple[str, int], list[tuple[str, Exchange]]] = {}
        self._watchers: list[tuple[str, StreamExchange]] = []
        self.streams: Final = Streams(host)

    # -- methods -------------------------------------------------------------------------------------------------------

    def command(self, exchange: Exchange) -> object:
        """A method that is a command and nothing else; the reply says that it was done."""
        request = exchange.request
        if isinstance(request, c.OpenSession):
            return wire.guest_opened(self._host.apply(request), _CREDITS)
        reply = self._host.apply(cast("c.Command", request))  # the table says which requests are commands
        if isinstance(request, c.AcquireControl | c.RenewControl):
            return Held(reply.name, reply.epoch, reply.lease_ns)
        return Done(type(request).__name__)

    def create_vcpu(self, exchange: Exchange) -> object:
        """A vCPU is made; the reply is how it is."""
        request = exchange.request
        assert isinstance(request, c.CreateVcpu)
        self._host.apply(request)
        return READS["GetVcpu"](self._host.machine.state, f"{request.vm}/vcpus/{request.index}")

    def read(self, exchange: Exchange) -> object:
        """The state of a vCPU. Nothing is written down for it; it waits for what it may speak of."""
        request = exchange.request
        assert isinstance(request, Read)
        return READS[exchange.method](self._host.machine.state, request.vcpu)

    def submit(self, exchange: Exchange) -> object:
        """One event; the answer has its outcome, pending ones too."""
        request = exchange.request
        assert isinstance(request, c.SubmitBatch)
        (outcome,) = self._host.apply(request)
        session = self._host.machine.state.sessions.get(request.session)
        vcpu = session.vcpus.get(outcome.vcpu) if session is not None else None
        taken = self._host.machine.state.side(vcpu).next_seq - 1 if vcpu is not None else outcome.seq
        return wire.Answer(wire.guest_outcome(outcome), taken)

    def attach(self, exchange: Exchange) -> object:
        """A stream of events there and of outcomes and directives back."""
        request = exchange.request
        assert isinstance(request, Hello)
        assert isinstance(exchange, DuplexExchange)
        self.streams.attach(exchange, request)
        return _LATER

    def wait_outcome(self, exchange: Exchange) -> object:
        """The final outcome, when there is one. Every message of a session renews its lease."""
        request = exchange.request
        assert isinstance(request, WaitOutcome)
        state = self._host.machine.state
        self._host.apply(c.KeepAlive(session=request.session, epoch=request.epoch))
        vcpu = state.sessions[request.session].vcpus.get(request.vcpu)
        if vcpu is not None and request.seq >= state.side(vcpu).next_seq:
            return wire.because("SEQ_GAP", f"number {request.seq} of {request.vcpu!r} was never submitted")
        outcome = find_outcome(state, request.session, request.epoch, request.vcpu, request.seq)
        if outcome.final:
            return wire.guest_outcome(outcome)
        self._waits.setdefault((request.vcpu, request.seq), []).append((request.session, exchange))
        return _LATER

    def migrate(self, exchange: Exchange) -> object:
        """A step of a migration."""
        return told(self._host.apply(cast("c.Command", exchange.request)))

    def look(self, exchange: Exchange) -> object:
        """How a migration is, or the image for it."""
        request = exchange.request
        assert isinstance(request, ListMigrations | GetMigration | ExportVm)
        return look(self._host.machine.state, request)

    def resolve(self, exchange: Exchange) -> object:
        """A decision; it renews the control's lease."""
        request = exchange.request
        assert isinstance(request, c.ResolveExit)
        record: ExitRecord = self._host.apply(request)
        with suppress(Refused):
            self._host.apply(c.RenewControl(control=request.control, epoch=request.control_epoch))
        return wire.exit_view(self._host.machine.state, record)

    def list_exits(self, exchange: Exchange) -> object:
        """The list."""
        request = exchange.request
        assert isinstance(request, ListExits)
        state = self._host.machine.state
        mine = [record for record in state.exits.values() if request.vm in ("", record.vm)]
        return Listed(tuple(wire.exit_view(state, record) for record in mine), state.revision)

    def get_exit(self, exchange: Exchange) -> object:
        """One exit, settled or not."""
        request = exchange.request
        assert isinstance(request, GetExit)
        record = self._record(request.name)
        if record is None:
            return wire.because("EXIT_NOT_FOUND", f"there is no exit {request.name!r}")
        return wire.exit_view(self._host.machine.state, record)

    def watch(self, exchange: Exchange) -> object:
        """A stream of exits."""
        request = exchange.request
        assert isinstance(request, WatchExits)
        assert isinstance(exchange, StreamExchange)
        state = self._host.machine.state
        if request.from_revision > state.revision:
            return wire.because("REVISION_IN_FUTURE", f"revision {request.from_revision} is not reached yet")
        known = [*state.exits.values(), *state.resolved_exits.values()]
        for record in sorted(known, key=lambda each: (each.created_revision, each.name)):
            news = record.open or record.updated_revision >= request.from_revision
            if news and request.vm in ("", record.vm):
                self._host.push(exchange, wire.exit_view(state, record))
        self._watchers.append((request.vm, exchange))
        return _LATER

    # -- what becomes known --------------------------------------------------------------------------------------------

    def final(self, outcome: Outcome) -> None:
        """An event has its final outcome: answer who waits for it."""
        for _session, exchange in self._waits.pop((outcome.vcpu, outcome.seq), ()):
            self._host.release(exchange, wire.guest_outcome(outcome))

    def exit_changed(self, name: str) -> None:
        """Tell who watches."""
        record = self._record(name)
        if record is None:
            return
        self._watchers = [pair for pair in self._watchers if not pair[1].done]
        for vm, exchange in self._watchers:
            if vm in ("", record.vm):
                self._host.push(exchange, wire.exit_view(self._host.machine.state, record))

    def taken_over(self, session: str, vcpus: Collection[str]) -> None:
        """An older session's calls on these vCPUs hear that they are fenced off."""
        self._fail(
            lambda owner, vcpu: owner != session and vcpu in vcpus,
            wire.because("SESSION_FENCED", f"the vCPU has a newer session than this: {session}"),
        )

    def check_sessions(self) -> None:
        """Calls and streams of sessions that have ended hear so."""
        self.streams.check_sessions()
        there = self._host.machine.state.sessions
        if any(owner not in there for waiting in self._waits.values() for owner, _exchange in waiting):
            expired = wire.because("SESSION_EXPIRED", "the session has expired: open a new one to go on")
            self._fail(lambda owner, _vcpu: owner not in there, expired)

    def forget(self, status: Refusal) -> None:
        """Nobody waits any more: what they wait for has not happened."""
        self._fail(lambda _owner, _vcpu: True, status)
        self.streams.forget(status)
        watchers, self._watchers = self._watchers, []
        for _vm, exchange in watchers:
            exchange.answer(status)

    def _fail(self, concerned: Callable[[str, str], bool], status: Refusal) -> None:
        for key, waiting in list(self._waits.items()):
            left = [pair for pair in waiting if not concerned(pair[0], key[0])]
            failed = [pair for pair in waiting if concerned(pair[0], key[0])]
            if failed:
                self._waits[key] = left
                if not left:
                    del self._waits[key]
            for _owner, exchange in failed:
                self._host.release(exchange, status)

    def _record(self, name: str) -> ExitRecord | None:
        state = self._host.machine.state
        return state.exits.get(name) or state.resolved_exits.get(name)


@dataclass(frozen=True, slots=True)
class Done:
    """A command was carried out."""

    brief: str


@dataclass(frozen=True, slots=True)
class Held:
    """A control: its name, its epoch, and its lease in nanoseconds."""

    name: str
    epoch: int
    lease_ns: int


@dataclass(frozen=True, slots=True)
class Method:
    """One method: its service, what carries it out, and whether a host with a full disk refuses it."""

    service: str
    name: str
    handler: Callable[[Service, Exchange], object]
    changes: bool = True

    @property
    def path(self) -> str:
        """As gRPC has it: what the hits of the rpc points are counted by."""
        return f"/fpstate.v1.{self.service}/{self.name}"

    @staticmethod
    def names(request: object) -> tuple[str, str]:
        """The VM and the vCPU that the request names first, empty for none."""
        name = ""
        match request:
            case c.SubmitBatch(events=events) if events:
                name = events[0].vcpu
            case c.OpenSession(vcpus=vcpus) | Hello(vcpus=vcpus):
                name = vcpus[0] if vcpus else ""
            case c.ResolveExit(exit=name) | GetExit(name=name):
                name = name.partition("/exits/")[0]
            case Read(vcpu=name) | WaitOutcome(vcpu=name) | c.RequestPermission(vm=name) | c.CreateVcpu(vm=name):
                pass
            case _:
                pass
        return "/".join(name.split("/")[:2]), name if "/vcpus/" in name else ""


def _methods(
    service: str, handler: Callable[[Service, Exchange], object], *names: str, changes: bool = True
) -> list[Method]:
    return [Method(service, name, handler, changes) for name in names]


#: Every method that the nodes of a world call.
METHODS: Final = {
    method.name: method
    for method in (
        *_methods("VmService", Service.command, "CreateVm", "RequestPermission", "ResetVm"),
        *_methods("VcpuService", Service.create_vcpu, "CreateVcpu"),
        *_methods("VcpuService", Service.read, *READS, changes=False),
        *_methods("GuestSessionService", Service.command, "OpenSession", "KeepAlive", "CloseSession"),
        *_methods("GuestSessionService", Service.submit, "SubmitEvents"),
        *_methods("GuestSessionService", Service.attach, "Attach"),
        *_methods("GuestSessionService", Service.wait_outcome, "WaitOutcome"),
        *_methods("ExitService", Service.command, "AcquireControl", "RenewControl", "ReleaseControl"),
        *_methods("MigrationService", Service.migrate, *COMMANDS),
        *_methods("MigrationService", Service.look, *LOOKS, changes=False),
        *_methods("ExitService", Service.resolve, "ResolveExit"),
        *_methods("ExitService", Service.list_exits, "ListExits", changes=False),
        *_methods("ExitService", Service.get_exit, "GetExit", changes=False),
        *_methods("ExitService", Service.watch, "WatchExits", changes=False),
    )
}
