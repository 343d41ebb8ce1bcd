"""What checking a history costs: four clients with fifty operations each, beside reading the same history's lines.

A guest writes XFD and XCR0 of two vCPUs, and readers look meanwhile with GetVcpu, GetMsrs and GetXcrs; every operation
overlaps some of the others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final

from bench.pairs import Figures
from bench.report import Row, by_turns_row, counted
from fault_lab.injection.draw import draw_between
from fault_lab.linear.checker import check
from fault_lab.linear.judge import judge
from fault_lab.linear.operations import VcpuHistory, histories, records_of

CLIENTS: Final = 4
OPERATIONS: Final = 50
VCPUS: Final = 2
HISTORIES: Final = 100
PAIRS: Final = 20
SEED: Final = 20211016
#: Longest time that an operation takes, in steps of the interleaving.
_LASTS: Final = 8
_WRITES: Final = (("Xsetbv", "xcr0", (1, 3, 7)), ("Wrmsr", "xfd", (0x40000, 0)))
_READ: Final = {"GetVcpu": ("xcr0", "xfd", "xfd_err"), "GetMsrs": ("xfd", "xfd_err"), "GetXcrs": ("xcr0",)}


def rows(fraction: int = 1) -> Iterator[Row]:
    """Histories a second, with one ``fraction``-th of them."""
    print(f"bench: histories of seed {SEED}; python -m bench linear repeats it")
    made = [history(SEED + nr) for nr in range(max(4, HISTORIES // fraction))]
    judged = [judge(lines) for lines in made]
    assert all(each.answer == "ok" for each in judged), "the histories are linearizable"
    assert all(sum(verdict.operations for _, verdict in each.vcpus.values()) >= CLIENTS * OPERATIONS for each in judged)

    def block(of: list[list[str]], *, whole: bool) -> float:
        begin_s = time.process_time()
        for lines in of:
            _ = judge(lines) if whole else [json.loads(line) for line in lines]
        return len(of) / (time.process_time() - begin_s)

    figures = Figures()
    pairs = max(2, PAIRS // fraction)
    figures.alternate(lambda: block(made, whole=True), lambda: block(made, whole=False), pairs=pairs)
    yield by_turns_row(
        f"histories of {CLIENTS} clients x {OPERATIONS} operations, from their lines to the verdicts",
        "histories/s",
        figures.pairs(),
        at_least=0.2,
        note="floor: json.loads of the same lines. Seconds are the processor's own.",
    )
    sorted_out = [histories(records_of(lines)) for lines in made]
    begin_s = time.process_time()
    steps = sum(verdict.steps for each in judged for _, verdict in each.vcpus.values())
    for each in sorted_out:
        _check(each)
    took_s = time.process_time() - begin_s
    yield counted("the search alone, for such a history", "ms (processor)", took_s / len(made) * 1000, at_most=2.0)
    yield counted("steps, for each operation", "steps", steps / len(made) / (CLIENTS * OPERATIONS), at_most=2.0)


def _check(sorted_out: dict[str, VcpuHistory]) -> None:
    for vcpu in sorted_out.values():
        check(vcpu.operations, vcpu.model)


def history(seed: int) -> list[str]:
    """A history by a host that is right: one guest client, three that look; answers take a while, in any order."""
    return _Host(seed).lines()


class _Host:
    """A host that carries an operation out at a drawn moment between its call and its return."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._draws = 0
        self._records: list[dict[str, Any]] = []
        self._vcpus = [{"xcr0": 1, "xfd": 0, "xfd_err": 0, "seq": 0} for _ in range(VCPUS)]

    def _draw(self, most: int) -> int:
        self._draws += 1
        return draw_between(self._seed, "bench", "", self._draws, low=0, high=most)

    def lines(self) -> list[str]:
        """Play it."""
        for index in range(VCPUS):
            self._add("invoke", index, f="CreateVcpu", process="guest", op=self._op(index, request=str(index)))
            self._add("ok", index, process="guest", result=self._look(index))
        left, under_way = [OPERATIONS] * CLIENTS, dict[int, dict[str, Any]]()
        call = VCPUS
        while any(left) or under_way:
            client = self._draw(CLIENTS - 1)
            going = under_way.get(client)
            if going is None and left[client]:
                left[client] -= 1
                call += 1
                under_way[client] = self._begin(client, call)
            elif going is not None:
                self._go_on(client, going, under_way)
        return [json.dumps({"n": n, **record}, separators=(",", ":")) for n, record in enumerate(self._records)]

    def _begin(self, client: int, call: int) -> dict[str, Any]:
        index = self._draw(VCPUS - 1)
        going: dict[str, Any] = {"call": call, "vcpu": index, "in": self._draw(_LASTS), "lasts": _LASTS, "result": None}
        if client:
            going["f"] = ("GetVcpu", "GetMsrs", "GetXcrs")[self._draw(2)]
            self._add("invoke", call, f=going["f"], process=f"eyes/{client}", op=self._op(index))
            return going
        name, register, values = _WRITES[self._draw(1)]
        going["register"], going["value"] = register, values[self._draw(len(values) - 1)]
        operands = {"value": going["value"], **({"msr": 0x1C4} if register == "xfd" else {})}
        op = self._op(index, seq=self._vcpus[index]["seq"] + 1, event=name, **operands)
        self._add("invoke", call, f="SubmitEvents", process="guest", op=op)
        return going

    def _go_on(self, client: int, going: dict[str, Any], under_way: dict[int, dict[str, Any]]) -> None:
        going["lasts"] -= 1
        if going["result"] is None and going["lasts"] <= going["in"]:
            going["result"] = self._look(going["vcpu"], going["f"]) if client else self._write(going)
        if going["lasts"] <= 0:
            process = f"eyes/{client}" if client else "guest"
            self._add("ok", going["call"], process=process, result=going["result"])
            del under_way[client]

    def _write(self, going: dict[str, Any]) -> dict[str, Any]:
        vcpu = self._vcpus[going["vcpu"]]
        vcpu["seq"] += 1
        vcpu[going["register"]] = going["value"]
        return {"outcome": "done"}

    def _look(self, index: int, f: str = "GetVcpu") -> dict[str, Any]:
        vcpu = self._vcpus[index]
        registers = {name: vcpu[name] for name in _READ[f]}
        if f != "GetVcpu":
            return registers
        container = {"xfeatures": 0x21EE7, "size": 2560, "supported_xcr0": 0x602E7}
        return {"state": "ENTERED", "next_seq": vcpu["seq"] + 1, **registers, **container}

    def _op(self, index: int, **fields: object) -> dict[str, object]:
        return {"vcpu": f"vms/a/vcpus/{index}", **fields}

    def _add(self, kind: str, call: int, **fields: object) -> None:
        self._records.append({"type": kind, "call": call, **fields})
