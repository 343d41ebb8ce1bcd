"""A controller as a node: the real policies, desk and backoff, in the order of ``vmm_controller.controller``.

    acquire --> list, watch --> exit wanted? --> decide (pure) --> ResolveExit --> the exit after it

A decision that did not get there is sent again as it was, with the same request id. At ``controller.decide`` a decision
can be lost (drop), late (delay, hold, reorder), sent more than once (duplicate), or contradicted: corrupt sends another
decision that the exit allows for the same generation beside it, under a request id of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.action import Corrupt, Delay, Drop, Duplicate, Hold, Reorder
from fault_lab.injection.draw import subseed
from fault_lab.sim import wire
from fault_lab.sim.node import Node
from fault_lab.sim.rpc import open_stream
from fault_lab.sim.services import GetExit, Held, Listed, ListExits, WatchExits
from fault_lab.sim.task import Call, Signal, Sleep, Step, Task, Wait, next_of
from guest_agent.outcome import Refusal
from host_agent import commands as c
from vmm_controller.desk import ExitDesk, Key, key_of
from vmm_controller.policy import (
    Backoff,
    Decision,
    DecisionKind,
    Defer,
    ExitView,
    InjectGp,
    KillVcpu,
    Pause,
    Retry,
    parse_policies,
    seeded_draw,
)

if TYPE_CHECKING:
    from fault_lab.sim.world import World

_S: Final = 1_000_000_000
#: ControllerConfig.call_timeout_s.
_CALL_NS: Final = 10 * _S
#: A service manager starts a controller that has ended again after this.
_RESTART_NS: Final = _S
#: The exit is not what it was when it was decided about. Source: vmm_controller/controller.py.
_LOOK_AGAIN: Final = frozenset({"EXIT_ALREADY_RESOLVED", "EXIT_STALE_GENERATION", "DECISION_NOT_ALLOWED"})
_LIST_AGAIN: Final = frozenset({"LIMIT_REACHED", "REVISION_IN_FUTURE"})
#: How late a decision is that others overtake, for each of them.
_OVERTAKEN_NS: Final = _S // 100
#: What a contradiction may say instead.
OTHERS: Final[tuple[Decision, ...]] = (InjectGp(), Retry(), Pause(), KillVcpu(), Defer())


class ControllerNode(Node):
    """One controller."""

    def __init__(self, world: World, planned: plan_pb2.PlannedController, seed: int) -> None:
        super().__init__(world, planned.name)
        self._scope = f"vms/{planned.vm}" if planned.vm else ""
        self._book = parse_policies(planned.policies)
        self._backoff = Backoff()
        self.reseed(seed)
        self._begin()

    def reseed(self, seed: int) -> None:
        """Draw from another seed from now on."""
        self._draw = seeded_draw(subseed(seed, f"controller/{self.name}"))

    def _begin(self) -> None:
        self._desk = ExitDesk()
        self._held: Held | None = None
        self._expires_ns = 0
        self._lost = Signal()
        self._children: list[Task] = []
        self._deciding: set[Key] = set()

    def boot(self) -> None:
        """Hold the scope, and decide under it."""
        self._begin()
        self.spawn(self._serve())

    # -- holding the scope ---------------------------------------------------------------------------------------------

    def _serve(self) -> Task:
        while True:
            yield from self._acquire()
            self._desk.reconsider()
            self._deciding.clear()
            self._lost = Signal()
            self._child(self._keep())
            self._child(self._follow())
            yield Wait(self._lost)
            for child in self._children:
                self.stop(child)
            self._children.clear()
            ran_out = self.world.now_ns >= self._expires_ns
            self.world.record("node", node=self.name, state="lost control")
            self._held = None
            if not ran_out:  # somebody has fenced us: stop, as ControllerConfig.on_fenced has it
                self.world.soon("", f"{self.name} ends", self.of_this_life(lambda: self.end("fenced", _RESTART_NS)))
                return

    def _child(self, task: Task) -> None:
        self._children.append(task)
        self.spawn(task)

    def _acquire(self) -> Generator[Step, Any, None]:
        failures = 0
        while True:
            reply = yield Call("AcquireControl", c.AcquireControl(scope=self._scope, controller=self.name), _CALL_NS)
            if isinstance(reply, Held):
                self._held = reply
                self._start_lease(reply.lease_ns)
                return
            failures += 1
            error = wire.call_error(reply)
            # A VM that is not there yet is waited for as well: whoever starts a controller starts it again.
            if error.reason not in ("CONTROL_HELD", "VM_NOT_FOUND") and not error.transient:
                self.world.soon("", f"{self.name} ends", self.of_this_life(lambda: self.end("refused", _RESTART_NS)))
            yield Sleep(self._delay_ns(f"control/{self.name}", failures))

    def _start_lease(self, lease_ns: int) -> None:
        self._expires_ns = self.world.now_ns + lease_ns

    def _keep(self) -> Task:
        while True:
            held = self._control()
            yield Sleep(held.lease_ns // 3)
            failures = 0
            while True:
                reply = yield Call("RenewControl", c.RenewControl(control=held.name, epoch=held.epoch), _CALL_NS)
                if not isinstance(reply, Refusal):
                    break
                if not wire.call_error(reply).transient:
                    self._loses()
                    return
                failures += 1
                yield Sleep(self._delay_ns(f"control/{self.name}", failures))
            self._start_lease(held.lease_ns)
            for key in self._desk.reconsider_yielded():
                self._consider(key)

    def _control(self) -> Held:
        assert self._held is not None, "there is control while anything is decided"
        return self._held

    def _loses(self) -> None:
        self.world.soon(self.name, "loses control", self.of_this_life(self._lost.give))

    # -- following exits -----------------------------------------------------------------------------------------------

    def _follow(self) -> Task:
        failures = 0
        while True:
            status = yield from self._list_and_watch()
            if status is None:
                failures = 0
                yield Sleep(self._delay_ns(f"connection/{self.name}", 1))
                continue
            error = wire.call_error(status)
            if not error.transient and error.reason not in _LIST_AGAIN:
                self._loses()
                return
            failures += 1
            yield Sleep(self._delay_ns(f"connection/{self.name}", failures))

    def _list_and_watch(self) -> Generator[Step, Any, Refusal | None]:
        """Until the stream ends: None where it ended in peace, else the status."""
        listed = yield Call("ListExits", ListExits(self._scope), _CALL_NS)
        if isinstance(listed, Refusal):
            return listed
        assert isinstance(listed, Listed)
        views = list(listed.exits)
        self._desk.keep_only(views)
        for view in views:
            self._see(view)
            self._consider(key_of(view))
        stream = open_stream(self, "WatchExits", WatchExits(self._scope, listed.revision))
        while True:
            news = yield from next_of(stream)
            if isinstance(news, Refusal):
                return news if news.code != "OK" else None
            self._see(news)

    def _see(self, view: ExitView) -> None:
        self.world.rules.deciders.sees(self, view)
        if self._desk.see(view):
            self._consider(key_of(view))

    # -- deciding ------------------------------------------------------------------------------------------------------

    def _consider(self, key: Key) -> None:
        if key in self._deciding:
            return
        if self._desk.wanted(key) is None:
            self.world.rules.deciders.idle(self, key, self._control().epoch)
            return
        self._deciding.add(key)
        self._child(self._decide_while_wanted(key))

    def _decide_while_wanted(self, key: Key) -> Task:
        try:
            while (view := self._desk.wanted(key)) is not None:
                yield from self._answer(view)
            self.world.rules.deciders.idle(self, key, self._control().epoch)
        finally:
            self._deciding.discard(key)

    def _answer(self, view: ExitView) -> Generator[Step, Any, None]:
        self._desk.decided(view)
        held = self._control()
        self.world.rules.deciders.decides(self, view, held.epoch)
        decision = self._book.decide(view, self._desk.history(view), self._draw)
        if decision is None:
            return
        self.world.rules.deciders.tries(self, view, decision.kind, self._book.policy_for(view.vm))
        request_id = f"{view.vcpu_uid}/{view.name}/{view.generation}/{held.name}/{held.epoch}"
        yield from self._disturbed(view, decision, held, request_id)

    def _disturbed(self, view: ExitView, decision: Decision, held: Held, request_id: str) -> Generator[Step, Any, None]:
        """Send a decision, unless a fault has something else in mind for it."""
        found = self.world.hit("controller.decide", self.name, decision.kind.name)
        match found[0].action if found is not None else None:
            case Drop():
                return
            case Delay(min_ns=ns) | Hold(for_ns=ns):
                yield Sleep(ns)
            case Reorder(depth=depth):
                yield Sleep(depth * _OVERTAKEN_NS)
            case Duplicate(copies=copies):
                for copy in range(copies):
                    self._child(self._resolve(view, decision, held, f"{request_id}/copy-{copy}"))
            case Corrupt() if found is not None:
                others = [
                    each for each in OTHERS if each.kind in view.allowed_decisions and each.kind is not decision.kind
                ]
                if others:
                    other = others[found[1].draw(found[2], "other", low=0, high=len(others) - 1)]
                    self._child(self._resolve(view, other, held, f"{request_id}/other"))
            case _:
                pass
        yield from self._resolve(view, decision, held, request_id)

    def _resolve(self, view: ExitView, decision: Decision, held: Held, request_id: str) -> Generator[Step, Any, None]:
        command = c.ResolveExit(
            exit=view.name,
            generation=view.generation,
            control=held.name,
            control_epoch=held.epoch,
            decision=wire.host_decision(decision),
            decided_by=self.name,
            request_id=request_id,
        )
        self.world.record(
            "decision", node=self.name, exit=view.name, generation=view.generation, kind=decision.kind.name
        )
        failures = 0
        while True:
            reply = yield Call("ResolveExit", command, _CALL_NS)
            if not isinstance(reply, Refusal):
                self._see(reply)
                return
            error = wire.call_error(reply)
            if not error.transient:
                break
            failures += 1
            pause_ns = self._delay_ns(f"connection/{self.name}", failures)
            yield Sleep(max(pause_ns, round((error.retry_after_s or 0.0) * _S)))
        if error.lost_control:
            self._loses()
        elif error.reason == "CONTROL_OUT_OF_SCOPE":
            self._desk.yielded(view)
            self.world.rules.deciders.yields(self, view, held.epoch)
        elif error.reason == "EXIT_NOT_FOUND":
            self._desk.forget(key_of(view))
            self.world.rules.deciders.forgets(self, view)
        elif error.reason in _LOOK_AGAIN:
            again = yield Call("GetExit", GetExit(view.name), _CALL_NS)
            if not isinstance(again, Refusal):
                self._see(again)

    def _delay_ns(self, name: str, failures: int) -> int:
        return round(self._backoff.delay_s(name, failures, self._draw) * _S)


#: Names of decisions as the "sometimes" checks have them.
DECIDED: Final = {f"decided-{kind.name.lower().replace('_', '-')}": kind.name for kind in DecisionKind}
