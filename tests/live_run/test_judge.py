"""What a live history must not hold, record by record; and what real processes may do that looks like it."""

from __future__ import annotations

from typing import Any

import pytest

from fault_lab.live.judge import Judge
from fault_lab.plan.load import load_plan
from fault_lab.sim.rules import Violation

PLAN = """
api-version: fpstate.fault.v1
name: judged
topology:
  hosts: [{name: host}, {name: forgetful, ephemeral: true}]
  vms: [{name: a}, {name: b, host: forgetful}]
  controllers: [{name: ctl}]
workload: {guests: [{mix: after-nm}]}
"""
VCPU = "vms/a/vcpus/0"
EXIT = f"{VCPU}/exits/1"


class History:
    """Records in a few words."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._calls = 0

    def begun(self, process: str, method: str, value: str) -> int:
        """A call was made; returns its number."""
        self._calls += 1
        self.records.append({"type": "invoke", "process": process, "f": method, "call": self._calls, "value": value})
        return self._calls

    def ended(self, call: int, value: str) -> History:
        """It was answered."""
        invoke = next(each for each in self.records if each.get("call") == call)
        self.records.append({**invoke, "type": "ok", "value": value})
        return self

    def call(self, process: str, method: str, value: str, answer: str) -> History:
        """Both, one behind the other."""
        return self.ended(self.begun(process, method, value), answer)

    def event(self, seq: int, answer: str = "done", vcpu: str = VCPU) -> History:
        """An event of a guest."""
        return self.call(vcpu, "SubmitEvents", f"epoch 1: {seq} Hlt", answer)

    def opened(self, epoch: int, next_seq: int = 1, vm: str = "vms/a") -> History:
        """A session."""
        return self.call(vm, "OpenSession", "1 vCPUs", f"epoch {epoch}, next [{next_seq}]")

    def exit(self, generation: int, state: str, decision: str | None = None) -> History:
        """What became of the exit."""
        fields = {"exit_cause": "NO_MEMORY", "decision": decision, "by": decision and "ctl"}
        record = {"type": "exit", "node": "host", "exit": EXIT, "generation": generation, "state": state}
        self.records.append(record | fields)
        return self

    def failed(self) -> History:
        """A growth was made to fail."""
        point = {"point": "fpstate.realloc.alloc", "entity": VCPU, "hit": 1, "action": "FailErrno(errno=12)"}
        self.records.append({"type": "fault", "fault": "short"} | point)
        return self

    def node(self, name: str, state: str) -> History:
        """A process."""
        self.records.append({"type": "node", "node": name, "state": state})
        return self

    def guest(self, state: str, **more: object) -> History:
        """How a guest has ended."""
        self.records.append({"type": "guest", "node": "vms/a", "state": state, **more})
        return self


def judged(history: History, *, unfinished: tuple[str, ...] = ()) -> str:
    """The first check that does not hold, and what is wrong; empty where all do."""
    judge = Judge(load_plan(PLAN))
    try:
        for record in history.records:
            judge.take(record)
        judge.failures()
        judge.eventually((), unfinished)
    except Violation as violation:
        return str(violation)
    return ""


def overlapping() -> History:
    """Two calls at once: the one that was answered first has the later epoch."""
    history = History()
    first = history.begun("ctl", "AcquireControl", "AcquireControl")
    return history.opened(2).ended(first, "epoch 1")


# fmt: off
CASES = [
    pytest.param(History().event(1).event(3), f"numbers-once: {VCPU}: event 3 is taken as 3 behind 1",
                 id="a number is left out"),
    pytest.param(History().event(1).event(1, "#GP"), f"final-once: {VCPU}: event 1 was done, and is #GP",
                 id="a final outcome changes"),
    pytest.param(History().event(1, f"pending on {EXIT} generation 1").event(1), "", id="a pending one does"),
    pytest.param(History().opened(1).opened(1), "epochs-rise: host hands out epoch 1 after 1", id="an epoch again"),
    pytest.param(overlapping(), "", id="epochs of calls at the same time have no order"),
    pytest.param(History().event(1).event(2).opened(1, 2),
                 f"acknowledged-is-there: {VCPU} expects event 2, and event 2 was acknowledged",
                 id="a session begins before what was acknowledged"),
    pytest.param(History().event(1).call("runner/host", "ListVcpus", "", f"{VCPU} next 1"),
                 f"acknowledged-is-there: {VCPU} expects event 1, and event 1 was acknowledged",
                 id="a host has forgotten it"),
    pytest.param(History().event(1, vcpu="vms/b/vcpus/0").node("forgetful", "killed").opened(1, 1, "vms/b")
                 .event(1, "#GP", vcpu="vms/b/vcpus/0"), "", id="one without a journal may"),
    pytest.param(History().exit(1, "open").exit(1, "resolved", "RETRY").exit(1, "open", "RETRY"),
                 f"one-exit-a-failure: {EXIT} is open again after it was resolved", id="an exit is open again"),
    pytest.param(History().exit(2, "open").exit(1, "open"),
                 f"one-exit-a-failure: {EXIT} goes from generation 2 back to 1", id="a generation goes back"),
    pytest.param(History().exit(1, "applying", "RETRY_AFTER").exit(1, "resolved", "INJECT_GP"),
                 f"one-decision-a-generation: {EXIT}, generation 1: INJECT_GP after RETRY_AFTER",
                 id="two decisions of one generation"),
    pytest.param(History().exit(1, "open").exit(2, "open", "RETRY").exit(2, "resolved", "INJECT_GP"), "",
                 id="one each of two generations"),
    pytest.param(History().exit(1, "resolved", "RETRY").exit(1, "resolved", "KILL_VCPU"),
                 f"no-decision-after-end: {EXIT}: KILL_VCPU after it was resolved", id="a decision after the end"),
    pytest.param(History().failed().failed().exit(1, "resolved", "RETRY"),
                 f"one-exit-a-failure: {VCPU}: 2 growths failed, and its exits have 1 generations",
                 id="a failure without an exit"),
    pytest.param(History().event(1, "rejected INTERNAL_INVARIANT"),
                 f"invariants: {VCPU}: event 1 found the host wrong about itself", id="an invariant"),
    pytest.param(History().event(1, "rejected FIELD_INVALID"),
                 f"guest-sees-its-bytes: {VCPU}: event 1 is rejected: FIELD_INVALID", id="a script is mistaken"),
    pytest.param(History().event(1, "rejected VCPU_KILLED"), "", id="its vCPU was killed"),
    pytest.param(History().guest("mismatch", vcpu=VCPU, round=1, why="line 3: expected 1, got 2"),
                 f"guest-sees-its-bytes: vms/a: {VCPU}: line 3: expected 1, got 2", id="a guest reads other bytes"),
    pytest.param(History().guest("faulted", vcpu=VCPU, round=1, why="line 3: #UD"),
                 f"guest-sees-its-bytes: vms/a: {VCPU}: line 3: #UD", id="an exception that nobody decided on"),
    pytest.param(History().exit(1, "open").exit(1, "resolved", "RETRY").guest("faulted", vcpu=VCPU, round=1, why="#GP"),
                 f"guest-sees-its-bytes: vms/a: {VCPU}: #GP", id="a retry is no reason for one"),
    pytest.param(History().exit(1, "resolved", "INJECT_GP").guest("faulted", vcpu=VCPU, round=1, why="#GP"), "",
                 id="somebody has decided on it"),
    pytest.param(History().node("vms/a", "killed").guest("faulted", vcpu=VCPU, round=1, why="#NM"), "",
                 id="a new agent has begun in the middle"),
    pytest.param(History().guest("gives up", why="INTERNAL/INTERNAL_INVARIANT: a bug of the host: x: y"),
                 "invariants: vms/a hears: a bug of the host: x: y", id="a host that refuses everything"),
    pytest.param(History().guest("gives up", why="UNAVAILABLE: nobody there"), "", id="nobody there"),
    pytest.param(History().guest("lost its session", why="it was made anew"), "session-goes-on: it was made anew",
                 id="a session is lost"),
    pytest.param(History().exit(1, "open"), f"no-stuck-exit: {EXIT} is open at generation 1", id="a stuck exit"),
    pytest.param(History().exit(2, "paused", "PAUSE"), "", id="one that waits for a person"),
]
# fmt: on


@pytest.mark.parametrize(("history", "expected"), CASES)
def test_checks(history: History, expected: str) -> None:
    """Each check by its name, with what it is about."""
    assert judged(history) == expected


def test_guests_end() -> None:
    """A vCPU that has not come to its end, unless it is paused for a person."""
    assert judged(History(), unfinished=(VCPU,)) == f"guests-end: {VCPU} has not come to its end"
    assert judged(History().exit(2, "paused", "PAUSE"), unfinished=(VCPU,)) == ""


def test_what_was_seen() -> None:
    """Faults that fired, and the kinds of decisions that were applied."""
    judge = Judge(load_plan(PLAN))
    for record in History().failed().exit(1, "open").exit(1, "applying", "RETRY_AFTER").records:
        judge.take(record)
    assert judge.seen == {"fired:short", "decided-retry-after"}
