"""A client that counts: every event and every call of it has one right answer, which it knows.

    python -m tests.crash.counting        one line of JSON on standard input says who it is and where it goes on

It speaks the protos and nothing else of ours, as somebody's own VMM would: SubmitEvents call by call, with calls that
make, reset and delete things in between; or a window of batches on an Attach stream.
"""

from __future__ import annotations

import json
import queue
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import grpc
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc
from fpstate.v1 import (
    event_pb2,
    session_pb2,
    session_pb2_grpc,
    vcpu_pb2,
    vcpu_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
)
from google.protobuf.duration_pb2 import Duration

from tests.crash import model
from tests.crash.link import CALL_S, OPTIONS, bad, is_away, judge, reason_of, say, until_answered

#: How many VMs, and how many armed faults, a client has at a time.
_KEPT: Final = 6
#: Events on their way at most, and in one batch at least and at most.
_WINDOW: Final = 48
_BATCH: Final = (1, 16)
_LEASE_S: Final = 3600
#: Between two messages of a stream: there is to be time for everybody else.
_PACE_S: Final = 0.006
_OVER: Final = frozenset({"SESSION_NOT_FOUND", "SESSION_EXPIRED", "SESSION_FENCED"})


class Client:
    """The state of one client: what it shares with the parent's record, and its connection."""

    def __init__(self, start: dict[str, Any]) -> None:
        self.name: str = start["name"]
        self.vcpu = f"vms/{self.name}/vcpus/0"
        self.chance = random.Random(start["seed"])
        self.sent: int = start["sent"].get(self.vcpu, 0)
        self.received: int = start["received"].get(self.vcpu, 0)
        self.acked = 0
        self.asks: int = start["asks"]
        self.open: list[list[str]] = start["open"]
        self.asked_before = {ask[0] for ask in self.open}
        self.things: dict[tuple[str, str], str] = {(kind, name): answer for kind, name, answer in start["things"]}
        channel = grpc.insecure_channel(start["address"], options=OPTIONS)
        self.sessions = session_pb2_grpc.GuestSessionServiceStub(channel)
        self.vms = vm_pb2_grpc.VmServiceStub(channel)
        self.vcpus = vcpu_pb2_grpc.VcpuServiceStub(channel)
        self.faults = fault_pb2_grpc.FaultServiceStub(channel)
        self.session = ""
        self.epoch = 0

    # -- calls that happen once ----------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """What was on its way when an earlier client was killed is asked again first; then what has to be there."""
        for request_id, op, kind, name in self.open:
            self._ask(request_id, op, kind, name)
        for vm in (self.name, f"{self.name}-r"):
            for kind in ("vm", "vcpu"):
                if (kind, vm) not in self.things:
                    self._ask(f"{vm}/{kind}", "make", kind, vm)

    def call(self) -> None:
        """The next call: make, reset, arm; and delete and disarm what is the oldest."""
        turn, which = divmod(self.asks, 5)
        request_id = f"{self.name}/{self.asks}"
        old = turn - _KEPT
        match which:
            case 0:
                self._ask(request_id, "make", "vm", f"{self.name}-{turn}")
            case 1:
                self._ask(request_id, "make", "fault", f"{self.name}:{turn}")
            case 2 if ("vm", f"{self.name}-{old}") in self.things:
                self._ask(request_id, "drop", "vm", f"{self.name}-{old}")
            case 3 if ("fault", f"{self.name}:{old}") in self.things:
                self._ask(request_id, "drop", "fault", f"{self.name}:{old}")
            case _:
                self._ask(request_id, "bump", "vm", f"{self.name}-r")

    def _ask(self, request_id: str, op: str, kind: str, name: str) -> None:
        say(ask=request_id, op=op, kind=kind, name=name)
        self.asks += request_id not in self.asked_before  # the parent counts it once as well
        try:
            answer = until_answered(lambda: self._CALLS[op, kind](self, request_id, name))
        except grpc.RpcError as error:
            judge(error, f"{op} {kind} {name}")
            answer = ""
        if op == "make":
            self.things[kind, name] = answer
        elif op == "drop":
            del self.things[kind, name]
        say(did=request_id, answer=answer)

    def _make_vm(self, request_id: str, name: str) -> str:
        request = vm_pb2.CreateVmRequest(vm_id=name, vm=vm_pb2.Vm(), request_id=request_id)
        return self.vms.CreateVm(request, timeout=CALL_S).vm.uid

    def _make_vcpu(self, request_id: str, name: str) -> str:
        request = vcpu_pb2.CreateVcpuRequest(parent=f"vms/{name}", request_id=request_id)
        return self.vcpus.CreateVcpu(request, timeout=CALL_S).vcpu.uid

    def _drop_vm(self, request_id: str, name: str) -> str:
        request = vm_pb2.DeleteVmRequest(name=f"vms/{name}", force=True, request_id=request_id)
        self.vms.DeleteVm(request, timeout=CALL_S)
        return ""

    def _reset_vm(self, request_id: str, name: str) -> str:
        request = vm_pb2.ResetVmRequest(name=f"vms/{name}", request_id=request_id)
        return self.vms.ResetVm(request, timeout=CALL_S).vm.uid

    def _arm(self, request_id: str, name: str) -> str:
        """A fault of a VM that is not there: it is counted and never fires."""
        fault = fault_pb2.Fault(
            point="fpstate.realloc.alloc",
            scope=fault_pb2.FaultScope(vm="vms/nobody", owner=name),
            action=fault_pb2.FaultAction(errno_action=fault_pb2.ErrnoAction(errno_value=12)),
        )
        request = fault_pb2.ArmFaultRequest(request_id=request_id, fault=fault)
        return self.faults.ArmFault(request, timeout=CALL_S).fault.name

    def _disarm(self, request_id: str, name: str) -> str:
        request = fault_pb2.DisarmFaultRequest(request_id=request_id, name=self.things["fault", name])
        self.faults.DisarmFault(request, timeout=CALL_S)
        return ""

    _CALLS: Final[dict[tuple[str, str], Callable[[Client, str, str], str]]] = {
        ("make", "vm"): _make_vm,
        ("make", "vcpu"): _make_vcpu,
        ("make", "fault"): _arm,
        ("drop", "vm"): _drop_vm,
        ("drop", "fault"): _disarm,
        ("bump", "vm"): _reset_vm,
    }

    # -- events --------------------------------------------------------------------------------------------------------

    def open_session(self) -> None:
        """A new session, which must go on between what was acknowledged and what was sent."""
        request = session_pb2.OpenSessionRequest(
            client_name=self.name,
            vcpus=[self.vcpu],
            lease=Duration(seconds=_LEASE_S),
            run_mode=session_pb2.RUN_MODE_EXPLICIT,
        )
        opened = until_answered(lambda: self.sessions.OpenSession(request, timeout=CALL_S))
        self.session, self.epoch = opened.session, opened.epoch
        self.check_resume(opened.vcpus[0].next_seq)

    def check_resume(self, next_seq: int) -> None:
        """Where the host goes on says what it has."""
        acked = max(self.acked, self.received)
        if next_seq <= acked:
            bad("lost", f"{self.vcpu}: the host goes on at event {next_seq}, and has acknowledged {acked}")
        if next_seq > self.sent + 1:
            bad("diverged", f"{self.vcpu}: the host goes on at event {next_seq}, and {self.sent} were sent")

    def batch(self, first: int) -> event_pb2.EventBatch:
        """Events from ``first`` on, and what was received of earlier ones."""
        events = model.batch(self.vcpu, first, self.chance.randint(*_BATCH))
        self.sent = max(self.sent, events[-1].seq)
        say(sent=self.vcpu, seq=self.sent)
        return event_pb2.EventBatch(
            events=event_pb2.GuestEvents(events=events),
            outcomes_received_through=[event_pb2.SeqMark(vcpu=self.vcpu, seq=self.received)],
        )

    def take(self, outcomes: session_pb2.Outcomes) -> None:
        """Outcomes came, and up to where the host has written down what it knows."""
        for outcome in outcomes.outcomes:
            wrong = model.wrong(self.vcpu, outcome)
            if wrong is not None:
                bad(*wrong)
            self.received = max(self.received, outcome.seq)
        say(received=self.vcpu, seq=self.received)
        for mark in outcomes.durable_through:
            if mark.seq > self.acked:
                self.acked = mark.seq
                say(acked=self.vcpu, seq=self.acked)

    # -- the two ways --------------------------------------------------------------------------------------------------

    def call_by_call(self) -> None:
        """SubmitEvents, and one other call for some of them, for ever."""
        self.open_session()
        while True:
            request = session_pb2.SubmitEventsRequest(
                session=self.session,
                epoch=self.epoch,
                batch=self.batch(self.received + 1),
                wait=session_pb2.WAIT_MODE_FINAL,
            )
            self._go_on(partial(self._submit, request))
            if self.chance.random() < 0.5:
                self.call()

    def _submit(self, request: session_pb2.SubmitEventsRequest) -> None:
        self.take(self.sessions.SubmitEvents(request, timeout=CALL_S).outcomes)

    def streaming(self) -> None:
        """One Attach stream after the other, for ever."""
        self.open_session()
        while True:
            self._go_on(self._stream)

    def _go_on(self, work: Callable[[], None]) -> None:
        """Work once; after a cut go on in the same session or in a new one, as chance has it."""
        try:
            work()
        except grpc.RpcError as error:
            if reason_of(error) not in _OVER and not is_away(error):
                judge(error, self.vcpu)
            if reason_of(error) in _OVER or self.chance.random() < 0.5:
                self.open_session()

    def _stream(self) -> None:
        requests: queue.SimpleQueue[session_pb2.AttachRequest | None] = queue.SimpleQueue()
        hello = session_pb2.AttachHello(session=self.session, epoch=self.epoch, vcpus=[self.vcpu])
        requests.put(session_pb2.AttachRequest(hello=hello))
        call = self.sessions.Attach(_until_none(requests), wait_for_ready=True)
        try:
            self.check_resume(next(call).attached.vcpus[0].next_seq)
            ahead = self.received
            while True:
                while ahead - self.received < _WINDOW:
                    batch = self.batch(ahead + 1)
                    ahead = batch.events.events[-1].seq
                    requests.put(session_pb2.AttachRequest(batch=batch))
                self.take(next(call).outcomes)
                time.sleep(_PACE_S)
        finally:
            requests.put(None)
            call.cancel()


def _until_none(requests: queue.SimpleQueue[session_pb2.AttachRequest | None]) -> Iterator[session_pb2.AttachRequest]:
    while (request := requests.get()) is not None:
        yield request


def main() -> None:
    """Work until the parent ends it."""
    start = json.loads(sys.stdin.readline())
    client = Client(start)
    client.set_up()
    if start["way"] == "stream":
        client.streaming()
    else:
        client.call_by_call()


if __name__ == "__main__":
    main()
