"""A host as a node: the real machine, a modelled journal, and services that let nothing leave before its commit.

Its end loses what was not committed. Its start carries the durable prefix out on a new machine, as recovery does:
every record must lead to the outcome that it has, and where nothing was lost the digest must be that of before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.action import Delay, FailStatus
from fault_lab.injection.draw import subseed
from fault_lab.injection.hit import Hit
from fault_lab.sim import wire
from fault_lab.sim.agenda import Entry
from fault_lab.sim.faults import CountingTable
from fault_lab.sim.host_tasks import plays_of
from fault_lab.sim.journal import Logged, ModelledJournal
from fault_lab.sim.lens import VcpuLens
from fault_lab.sim.node import Node
from fault_lab.sim.preemption import EndlessError
from fault_lab.sim.rpc import Exchange, StreamExchange
from fault_lab.sim.services import METHODS, Later, Service
from fault_lab.sim.task_watch import TaskWatch
from fault_lab.wire.duration import duration_ns
from fpu_core.errors import CoreBug
from guest_agent.outcome import Refusal
from host_agent.commands import Boot, Command, HitFault, Tick
from host_agent.effects import DirectiveIssued, ExitChanged, OutcomeReady, VcpusTaken
from host_agent.errors import Refused
from host_agent.journal.outcome import pack_outcome
from host_agent.machine import HostMachine
from host_agent.state import HostConfig

if TYPE_CHECKING:
    from fault_lab.sim.world import World

RECEIVE: Final = "rpc.server.receive"
REPLY: Final = "rpc.server.reply"


class HostNode(Node):
    """One host agent."""

    def __init__(self, world: World, planned: plan_pb2.PlannedHost, seed: int) -> None:
        super().__init__(world, planned.name)
        self.ephemeral = planned.ephemeral
        self.session_credits = planned.session_credits
        self.journal = ModelledJournal(self, seed)
        self._config = host_config(planned)
        self.machine = HostMachine(self._config)
        self.service = Service(self)
        self.plays = plays_of(world.plan, self.name, seed)
        self._seed = subseed(seed, f"preemption/{self.name}")
        self._watch = self._new_watch(self.machine)
        self._timer: Entry | None = None
        self._timer_ns: int | None = None
        self._digest_before = ""
        self._lens = VcpuLens(world, self.name)

    # -- life ----------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Come back from what is durable, and arm what the plan wants."""
        self._recover()
        self.clock.set(self.machine.state.now_ns)
        self.apply(Boot(config=self._config))
        self.world.faults.arm(self)
        for play in self.plays:
            self.spawn(play.play(self))

    def ended(self) -> None:
        """Keep the durable prefix."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._timer_ns = None
        whole = self.journal.applied == self.journal.durable
        self._digest_before = self.machine.digest() if whole and not self.ephemeral else ""
        lost = self.journal.crash(ephemeral=self.ephemeral)
        self.world.record("node", node=self.name, state="lost", records=lost)
        if self.ephemeral:
            self.world.record("node", node=self.name, state="forgot", op={"vcpus": self._vcpus()})
        self.service = Service(self)

    def _vcpus(self) -> list[str]:
        """The vCPUs that there are now."""
        state = self.machine.state
        return [state.vcpu_name(vcpu) for vm in state.vms.values() for vcpu in vm.kvm.vcpus.values()]

    def recover(self, why: str) -> None:
        """Go back to what is durable while the process lives on."""
        self.world.record("node", node=self.name, state=why)
        self._digest_before = ""
        self._recover()
        self._set_timer()
        service, self.service = self.service, Service(self)
        service.forget(wire.because("STORAGE_FULL", "the disk is full"))
        self.world.soon(self.name, "arms its faults again", self._arm_again)

    def _arm_again(self) -> None:
        """Unless the process has ended in that very moment: nothing is applied then, and nothing is written down."""
        if self.up:
            self.world.faults.arm(self)

    def _recover(self) -> None:
        machine = self._new_machine()
        watch = self._new_watch(machine)
        for number, record in enumerate(self.journal.records, 1):
            outcome = self._carried_out(machine, watch, record)
            if record.outcome and (outcome, machine.state.revision) != (record.outcome, record.revision):
                self.world.rules.fail(
                    "recovered-same-outcomes", f"record {number} of {self.name} leads to another outcome"
                )
        if self._digest_before and machine.digest() != self._digest_before:
            self.world.rules.fail("recovered-same-digest", f"{self.name} is not what it was before it ended")
        self.machine, self._watch = machine, watch
        if self.journal.records:
            self.world.record("node", node=self.name, state="recovered", records=self.journal.durable)
        self._lens.look(machine.state)
        self.world.rules.recovered(self)

    def _new_machine(self) -> HostMachine:
        machine = HostMachine(self._config)
        machine.state.faults = CountingTable(self.world.faults.forced)
        return machine

    def _new_watch(self, machine: HostMachine) -> TaskWatch | None:
        """Where the plan has host tasks, or preempts them, somebody looks at every command."""
        workload = self.world.plan.workload
        if not self.plays and not workload.preempt_ppm:
            return None
        return TaskWatch(machine, self._seed, workload.preempt_ppm, self.world.rules.fail)

    def _carried_out(self, machine: HostMachine, watch: TaskWatch | None, record: Logged) -> bytes:
        result: object
        if watch is not None:
            watch.begins(record.command)
        try:
            result = machine.apply(record.command, record.now_ns)
        except Refused as refused:
            result = refused
        if watch is not None:
            watch.ended(record.command, result)
        outcome = pack_outcome(record.command, result, machine.state.effects) if record.outcome else b""
        machine.take_effects()
        fired = machine.state.faults
        if isinstance(fired, CountingTable):
            fired.forget()
        return outcome

    # -- commands ------------------------------------------------------------------------------------------------------

    def apply(self, command: Command) -> Any:  # noqa: ANN401 -- each command has its own reply
        """Carry a command out, write it down, and make known what it made known once that is durable.

        Raises ``Refused``.
        """
        machine, now_ns = self.machine, max(self.now_ns, self.machine.state.now_ns)
        self.world.rules.before(self, command)
        if self._watch is not None:
            self._watch.begins(command)
        result: object
        try:
            result = machine.apply(command, now_ns)
        except Refused as refused:
            result = refused
        except (CoreBug, AssertionError) as bug:
            self.world.rules.fail("invariants", str(bug) or f"an assertion of {type(command).__name__}")
            raise
        except EndlessError as error:
            self.world.rules.fail("commands-end", str(error))
            raise
        effects = machine.state.effects
        keeps = self.world.faults.processes_end
        outcome = pack_outcome(command, result, effects) if keeps else b""
        machine.state.effects = []
        self.journal.append(Logged(now_ns, command, machine.state.revision, outcome))
        self._note_fired()
        self._lens.look(machine.state)
        self.world.rules.after(self, command, result, effects)
        if self._watch is not None:
            self._watch.ended(command, result)
        self._make_known(effects)
        self._set_timer()
        if isinstance(result, Refused):
            raise result
        return result

    def _make_known(self, effects: list[Any]) -> None:
        service = self.service
        for effect in effects:
            match effect:
                case OutcomeReady(outcome=outcome):
                    service.streams.outcome(outcome)
                    if outcome.final:
                        service.final(outcome)
                case DirectiveIssued(session=session, directive=directive):
                    service.streams.directive(session, directive)
                case ExitChanged(exit=name):
                    self.world.rules.exit_changed(self, name)
                    service.exit_changed(name)
                case VcpusTaken(session=session, vcpus=vcpus):
                    service.taken_over(session, vcpus)
                case _:
                    pass
        service.check_sessions()

    def _note_fired(self) -> None:
        """Take note of what fired in the machine since the last command."""
        table = self.machine.state.faults
        if not isinstance(table, CountingTable):
            return
        self.world.faults.seen(table.hits)
        fired = list(table.fired)
        table.forget()
        for name, hit, number, action in fired:
            found = self.world.faults.host_fired(self, name, hit, number, action)
            if found is not None:
                self.world.record_fired(found)
        if fired and self.world.faults.spent:
            self.world.soon(self.name, "disarms its faults", lambda: self.world.faults.arm(self))

    def _set_timer(self) -> None:
        due_ns = self.machine.next_deadline_ns()
        if due_ns == self._timer_ns:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_ns = None, due_ns
        if due_ns is not None:
            self._timer = self.after(max(0, due_ns - self.now_ns), "time", self._tick)

    def _tick(self) -> None:
        self._timer = self._timer_ns = None
        self.apply(Tick())

    def clock_changed(self) -> None:
        """What was due at a time of the clock is due at another moment."""
        self._timer_ns = -1
        self._set_timer()

    # -- calls ---------------------------------------------------------------------------------------------------------

    def serve(self, exchange: Exchange) -> None:
        """A request has arrived."""
        self._gate(RECEIVE, exchange, partial(self._carry_out, exchange), partial(self.release, exchange))

    def _carry_out(self, exchange: Exchange) -> None:
        reply: object
        if self.journal.full and METHODS[exchange.method].changes:
            reply = wire.because("STORAGE_FULL", "the host takes no new work until there is room")
        else:
            try:
                reply = METHODS[exchange.method].handler(self.service, exchange)
            except Exception as error:
                refusal = wire.refusal_of(error)
                if refusal is None or isinstance(error, CoreBug):
                    raise
                reply = refusal
        if not isinstance(reply, Later):
            self.release(exchange, reply)

    def release(self, exchange: Exchange, reply: object) -> None:
        """Let an answer leave once everything it may speak of is durable, and unless a fault loses it."""
        leave = partial(self._leave, exchange, reply, self.journal.applied)
        self.when_durable(lambda: self._gate(REPLY, exchange, leave, partial(self._leave_durable, exchange)), exchange)

    def push(self, exchange: StreamExchange, message: object) -> None:
        """Let a message of a stream leave once it is durable."""
        stamp = self.journal.applied

        def leave() -> None:
            self.world.rules.leaves(self, stamp)
            exchange.push(message)

        self.when_durable(leave, None)

    def when_durable(self, leave: Callable[[], None], exchange: Exchange | None) -> None:
        """Do it once all that is applied now is durable; where that never comes, say so to who asked."""

        def given_up() -> None:
            if exchange is not None:
                exchange.answer(wire.because("STORAGE_FULL", "what was under way has not happened"))

        self.journal.settled(leave, given_up)

    def _leave(self, exchange: Exchange, reply: object, stamp: int) -> None:
        self.world.rules.leaves(self, stamp)
        self.world.rules.acknowledged(self, exchange.method, reply)
        exchange.answer(reply)

    def _leave_durable(self, exchange: Exchange, reply: object) -> None:
        """What a fault says in place of the reply leaves as late as the reply would."""
        self.when_durable(partial(self._leave, exchange, reply, self.journal.applied), exchange)

    def _gate(
        self, point: str, exchange: Exchange, go_on: Callable[[], None], instead: Callable[[object], None]
    ) -> None:
        """Ask at a point of the services: go on, go on later, or answer with a status instead."""
        if point not in self.world.rpc_points or (point == REPLY and isinstance(exchange, StreamExchange)):
            go_on()
            return
        method = METHODS[exchange.method]
        vm, vcpu = method.names(exchange.request)
        hit = Hit(
            point=point, entity=method.path, vm=vm, vcpu=vcpu, trigger=exchange.method, trace=(point, exchange.method)
        )
        verdict = self.apply(HitFault(hit=hit))
        match verdict.action:
            case FailStatus(code, message):
                instead(Refusal(wire.code_name(code), message or f"{point} failed"))
            case Delay(min_ns=ns):
                self.after(ns, f"{exchange.method} goes on", go_on)
            case _:
                go_on()


def host_config(planned: plan_pb2.PlannedHost) -> HostConfig:
    """What a planned host is started with."""
    standard = HostConfig()
    return HostConfig(
        host=planned.name,
        boot_id=f"boot-{planned.name}",
        default_profile=planned.profile or standard.default_profile,
        default_kernel_rules=planned.kernel_rules or standard.default_kernel_rules,
        cpus=planned.cpus or standard.cpus,
        byte_limit=planned.byte_limit if planned.HasField("byte_limit") else None,
        faults=True,
        durable=not planned.ephemeral,
        default_lease_ns=_ns(planned, "default_lease", standard.default_lease_ns),
        exit_deadline_ns=_ns(planned, "exit_deadline", standard.exit_deadline_ns),
    )


def _ns(planned: plan_pb2.PlannedHost, field: Literal["default_lease", "exit_deadline"], otherwise: int) -> int:
    return duration_ns(field, getattr(planned, field)) if planned.HasField(field) else otherwise
