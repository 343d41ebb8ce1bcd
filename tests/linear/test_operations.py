"""What a check makes of records: attempts that are one operation, answers that were lost, what nobody can know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fault_lab.linear.judge import judge
from fault_lab.linear.operations import HistoryError
from fault_lab.linear.report import told
from fault_lab.plan.load import load_plan
from fault_lab.sim.run import simulate

HERE = Path(__file__).parent
VCPU = "vms/a/vcpus/0"
MADE = {
    "state": "OUTSIDE",
    "next_seq": 1,
    "xcr0": 1,
    "xfd": 0,
    "xfd_err": 0,
    "xfeatures": 0x21EE7,
    "size": 2560,
    "supported_xcr0": 0x602E7,
}


class Told:
    """Records as a run writes them: ``call`` begins one, ``ends`` ends it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.calls = 0
        self.end(self.call("CreateVcpu", vcpu=VCPU, request="r"), MADE)

    def add(self, **fields: Any) -> None:  # noqa: ANN401
        """One record."""
        self.lines.append(json.dumps({"n": len(self.lines), **fields}, separators=(",", ":")))

    def call(self, f: str, **op: Any) -> int:  # noqa: ANN401
        """A call begins."""
        self.calls += 1
        self.add(type="invoke", process="p", f=f, call=self.calls, op=op)
        return self.calls

    def end(self, call: int, result: dict[str, Any] | None = None, kind: str = "ok") -> None:
        """It has ended."""
        self.add(type=kind, process="p", call=call, **({} if result is None else {"result": result}))

    def write(self, seq: int = 1, value: int = 0x40000) -> int:
        """WRMSR of XFD."""
        return self.call("SubmitEvents", vcpu=VCPU, seq=seq, event="Wrmsr", msr=0x1C4, value=value)

    def look(self, xfd: int, seq: int) -> None:
        """GetVcpu says so."""
        self.end(self.call("GetVcpu", vcpu=VCPU), {**MADE, "xfd": xfd, "next_seq": seq + 1})

    @property
    def answer(self) -> str:
        """The verdict."""
        return judge(self.lines).answer

    @property
    def operations(self) -> list[str]:
        """What was made of it."""
        ((history, _),) = judge(self.lines).vcpus.values()
        return [told(each.what) + ("" if each.ret is not None else " ...") for each in history.operations]


DONE = {"outcome": "done"}


def test_an_acknowledged_write_is_seen() -> None:
    """What is told, and that a look behind the acknowledgement sees the write."""
    history = Told()
    history.end(history.write(), DONE)
    history.look(0x40000, 1)
    assert history.operations == [
        "CreateVcpu",
        "event 1 Wrmsr msr=0x1c4 value=0x40000 -> done",
        "GetVcpu -> OUTSIDE, 1 events, xcr0=0x1 xfd=0x40000 xfd_err=0x0, 2560 bytes",
    ]
    assert history.answer == "ok"


def test_a_violation_is_shown() -> None:
    """The operations, the states that were possible, and the one that none of them explains."""
    history = Told()
    history.end(history.write(), DONE)
    history.look(0, 0)
    assert judge(history.lines).violation == (
        "vms/a/vcpus/0: no order explains 3 operations up to record 5\n"
        "  possible before it: here, 1 events, xcr0=0x1 xfd=0x40000 xfd_err=0x0\n"
        "    0..1         p                  CreateVcpu\n"
        "    2..3         p                  event 1 Wrmsr msr=0x1c4 value=0x40000 -> done\n"
        "  * 4..5         p                  GetVcpu -> OUTSIDE, 0 events, xcr0=0x1 xfd=0x0 xfd_err=0x0, 2560 bytes"
    )


def test_an_attempt_again_is_the_same_operation() -> None:
    """The answer was lost, and the number sent again: it took effect once, anywhere since the first attempt."""
    history = Told()
    history.end(history.write(), kind="info")
    history.look(0x40000, 1)
    history.end(history.write(), DONE)
    assert history.operations == [
        "CreateVcpu",
        "event 1 Wrmsr msr=0x1c4 value=0x40000",
        "outcome of event 1 -> done",
        "GetVcpu -> OUTSIDE, 1 events, xcr0=0x1 xfd=0x40000 xfd_err=0x0, 2560 bytes",
    ]
    assert history.answer == "ok"
    history.look(0, 0)
    assert history.answer == "violation"


@pytest.mark.parametrize("seen", [[(0, 0)], [(0, 0), (0x40000, 1)], [(0x40000, 1)]])
def test_what_nobody_heard_of_may_have_happened_or_not(seen: list[tuple[int, int]]) -> None:
    """It stays open to the end: looks may see it from some moment on, or never."""
    history = Told()
    history.end(history.write(), kind="info")
    for xfd, seq in seen:
        history.look(xfd, seq)
    assert history.answer == "ok"


def test_what_was_seen_is_not_undone() -> None:
    """Once one has seen it, it has happened."""
    history = Told()
    history.end(history.write(), kind="info")
    history.look(0x40000, 1)
    history.look(0, 0)
    assert history.answer == "violation"


def test_what_failed_has_not_happened() -> None:
    """A refusal is none of the operations."""
    history = Told()
    history.end(history.write(), kind="fail")
    assert history.operations == ["CreateVcpu"]
    history.look(0x40000, 1)
    assert history.answer == "violation"


def test_a_number_that_a_fenced_session_was_refused_is_sent_by_the_next() -> None:
    """The same event again is one of its own: the refusal may or may not have used the number up."""
    history = Told()
    history.end(history.write(), {"outcome": "rejected", "reason": "SESSION_FENCED", "taken": True})
    history.end(history.write(), DONE)
    history.look(0x40000, 1)
    assert history.answer == "ok"


def test_an_outcome_needs_a_decision() -> None:
    """Parked in front of a write, a guest hears that it has happened: not before somebody decided so."""
    history = Told()
    grow = {"vcpu": VCPU, "seq": 1, "event": "Xsetbv", "value": 0x602E7}
    history.end(history.call("SubmitEvents", **grow), {"outcome": "pending", "generation": 1})
    grown = {"outcome": "done", "grown": [2560, 10752]}
    early = Told()
    early.lines, early.calls = list(history.lines), history.calls
    early.end(early.call("WaitOutcome", vcpu=VCPU, seq=1), grown)
    assert early.answer == "violation"
    decide = {"vcpu": VCPU, "seq": 1, "generation": 1, "decision": "RETRY", "request": "d"}
    history.end(history.call("ResolveExit", **decide), {"generation": 1, "state": "RESOLVED"})
    history.end(history.call("WaitOutcome", vcpu=VCPU, seq=1), grown)
    assert history.answer == "ok"


def test_a_host_that_forgets() -> None:
    """What a host without a journal forgot is gone, and is made anew."""
    history = Told()
    history.end(history.write(), DONE)
    history.add(type="node", node="host", state="forgot", op={"vcpus": [VCPU]})
    history.end(history.call("CreateVcpu", vcpu=VCPU, request="other"), MADE)
    history.look(0, 0)
    assert history.answer == "ok"


@pytest.mark.parametrize(
    ("f", "op", "why"),
    [
        ("SetCpuid", {"vcpu": VCPU}, "SetCpuid is not in the model"),
        (
            "ResolveExit",
            {"vcpu": VCPU, "seq": 1, "generation": 1, "decision": "MIGRATE"},
            "MIGRATE is not in the model",
        ),
    ],
)
def test_what_the_model_does_not_have_is_unknown(f: str, op: dict[str, Any], why: str) -> None:
    """Never a failure: the vCPU and the reason."""
    history = Told()
    history.end(history.call(f, **op), {"state": "APPLYING"})
    judged = judge(history.lines)
    assert (judged.answer, judged.unknown) == ("unknown", f"{VCPU}: {why}")


def test_a_record_that_lacks_something() -> None:
    """It is said, and nothing is judged."""
    history = Told()
    history.end(history.call("GetVcpu", vcpu=VCPU), {"state": "OUTSIDE"})
    with pytest.raises(HistoryError, match="lacks what a check reads: KeyError"):
        judge(history.lines)


def test_the_records_of_a_run() -> None:
    """What the simulator writes for a check to read, all of it: record.txt beside this file."""
    first = HERE.parent / "sim" / "first.yaml"
    lines = simulate(load_plan(first.read_text(encoding="utf-8"), "first.yaml")).lines
    records = [json.loads(line) for line in lines if '"op":' in line or '"result":' in line]
    shown = [{key: each[key] for key in ("type", "f", "op", "result") if key in each} for each in records]
    assert "".join(f"{json.dumps(each)}\n" for each in shown) == (HERE / "record.txt").read_text(encoding="utf-8")
