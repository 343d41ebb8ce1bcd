"""Guests one after the other, each in a VM of its own, with the shipped agents: scripted, or real under /dev/kvm.

    python -m tests.crash.guests          one line of JSON on standard input says who it is and where it goes on

Growth fails twice for each, so each needs a controller; each checks what it loaded, byte by byte, when it reads it
back. A guest whose process was killed is gone, as a VMM's memory is: the next process goes on with the next one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from guest_agent.error import HostError
from guest_agent.host import Host
from guest_agent.kvm import GrowthOrder, GuestProgram, install_kick_signal
from guest_agent.kvm_agent import KvmAgent
from guest_agent.outcome import Blocked, Pending
from guest_agent.recovery import Remedy, remedy
from guest_agent.report import Outcome
from guest_agent.run import GuestAgent, shipped_script
from guest_agent.script_agent import ScriptAgent
from guest_agent.script_parser import load_script
from guest_agent.session import Session, open_session
from guest_agent.setup import create_guest
from guest_agent.step import PortStep
from tests.crash.link import bad, say

T = TypeVar("T")
_KEPT: Final = 3
_PAUSE_S: Final = 0.02
_ENOMEM: Final = 12
#: A wait for a decision may be cut again and again, until the controller has found the host as well.
_RECONNECT_S: Final = 3600


class Guests:
    """One guest after the other."""

    def __init__(self, start: dict[str, Any]) -> None:
        self.name: str = start["name"]
        self.kind: str = start["kind"]
        self.asks: int = start["asks"]
        self.open: list[list[str]] = start["open"]
        self.asked_before = {ask[0] for ask in self.open}
        self.things: dict[tuple[str, str], str] = {(kind, name): answer for kind, name, answer in start["things"]}
        self.host = Host(start["address"])
        self.scripts = [load_script(shipped_script(order)) for order in GrowthOrder]

    def run(self) -> None:
        """For ever."""
        for request_id, op, kind, name in self.open:
            self._ask(request_id, op, kind, name)
        while True:
            turn = self.asks
            vm = f"{self.name}-{turn}"
            self._ask(vm, "make", "vm", vm)
            self._ask(f"{vm}/fault", "make", "fault", vm)
            self._one(vm, turn)
            self._forget()

    def _one(self, vm: str, turn: int) -> None:
        """One guest from its first event to its last."""
        vcpu = f"vms/{vm}/vcpus/0"
        opened = _until_answered(
            lambda: open_session(
                self.host.channel, vcpus=[vcpu], client_name=self.name, lease_s=3600, reconnect_s=_RECONNECT_S
            )
        )
        with opened as session:
            session.vcpu(vcpu).on_step = self._step
            report = self._agent(session, vcpu, turn).run()
        if report.outcome is not Outcome.VERIFIED:
            bad("diverged", f"{vm}: {report.outcome.name} {report.reason} after {report.said}")
        say(verified=vm)

    def _agent(self, session: Session, vcpu: str, turn: int) -> GuestAgent:
        if self.kind == "kvm":
            order = list(GrowthOrder)[turn % len(GrowthOrder)]
            return KvmAgent(session, vcpu, GuestProgram(order=order, seed=turn + 1))
        return ScriptAgent(session, vcpu, self.scripts[turn % len(self.scripts)])

    def _step(self, step: PortStep) -> None:
        """Only what is final, or parks the vCPU, is an acknowledgement."""
        if step.outcome is None:
            say(sent=step.vcpu, seq=step.seq)
        elif not isinstance(step.outcome, Blocked | Pending):
            say(acked=step.vcpu, seq=step.seq)

    def _forget(self) -> None:
        """Delete what is left of earlier guests, whoever has run them."""
        for kind in ("vm", "fault"):
            names = [name for each, name in self.things if each == kind]
            for name in names[:-_KEPT]:
                self._ask(f"{name}/drop-{kind}", "drop", kind, name)

    # -- calls that happen once ----------------------------------------------------------------------------------------

    def _ask(self, request_id: str, op: str, kind: str, name: str) -> None:
        say(ask=request_id, op=op, kind=kind, name=name)
        self.asks += request_id not in self.asked_before  # the parent counts it once as well
        try:
            answer = _until_answered(lambda: self._call(request_id, op, kind, name))
        except HostError as error:
            answer = ""
            bad("lost" if error.reason.endswith("_NOT_FOUND") else "duplicated", f"{op} {kind} {name}: {error}")
        if op == "make":
            self.things[kind, name] = answer
        else:
            del self.things[kind, name]
        say(did=request_id, answer=answer)

    def _call(self, request_id: str, op: str, kind: str, name: str) -> str:
        if (op, kind) == ("make", "vm"):
            create_guest(self.host, name, request_id=request_id)
            return self.host.get_vm(f"vms/{name}").uid
        if (op, kind) == ("make", "fault"):
            point = "fpstate.realloc.alloc"
            fault = self.host.arm_fault(
                point, errno=_ENOMEM, vm=f"vms/{name}", owner=name, times=2, request_id=request_id
            )
            return fault.name
        if kind == "vm":
            self.host.delete_vm(f"vms/{name}", force=True, request_id=request_id)
        else:
            self.host.disarm_fault(self.things[kind, name], request_id=request_id)
        return ""


def _until_answered(call: Callable[[], T]) -> T:
    """Make a call until the host answers it. Raises ``HostError`` for what it refuses for good."""
    while True:
        try:
            return call()
        except HostError as error:
            if remedy(error.refusal) is Remedy.NONE:
                raise
        time.sleep(_PAUSE_S)


def main() -> None:
    """Work until the parent ends it."""
    start = json.loads(sys.stdin.readline())
    if start["kind"] == "kvm":
        install_kick_signal()
    Guests(start).run()


if __name__ == "__main__":
    main()
