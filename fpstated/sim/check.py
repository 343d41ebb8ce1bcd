"""``fpstated sim check``: whether what everybody heard could have happened one after the other, from a history."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fpstated.files import read_input
from fpstated.sim.shared import OK, UNKNOWN, VIOLATION, UsageError, complaints

if TYPE_CHECKING:
    from fault_lab.linear.judge import Judged

_STEPS = 200_000


class Format(enum.StrEnum):
    """For which other checker."""

    JEPSEN = "jepsen"
    PORCUPINE = "porcupine"


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A history, of a simulated run or a live one.")],
    steps: Annotated[int, typer.Option(metavar="N", help="So many steps for each vCPU.", min=1)] = _STEPS,
    export: Annotated[
        Format | None, typer.Option(help="Print the history for another checker, and check nothing.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: an object a vCPU.")] = False,
) -> None:
    """Check a history for linearizability, each vCPU by itself. Status 1 for a violation, 2 where nothing is known."""
    with complaints("check"):
        from fault_lab.linear import export as exports
        from fault_lab.linear.judge import judge
        from fault_lab.linear.operations import HistoryError, histories, records_of

        try:
            lines = read_input(file).splitlines()
            match export:
                case Format.JEPSEN:
                    print("\n".join(exports.jepsen(records_of(lines))))
                case Format.PORCUPINE:
                    print(exports.porcupine(histories(records_of(lines))), end="")
                case None:
                    _report(judge(lines, steps), as_json=as_json)
        except HistoryError as error:
            raise UsageError(f"{file}: {error}") from error


def _report(judged: Judged, *, as_json: bool) -> None:
    """A line a vCPU, what is wrong, and the counts; the status says the worst."""
    from fault_lab.linear.operations import HistoryError
    from fault_lab.linear.report import shown

    if not judged.vcpus:
        raise HistoryError("expected operations on vCPUs, found none")
    for vcpu, (_, verdict) in judged.vcpus.items():
        told = shown(vcpu, verdict) if verdict.answer == "violation" else ""
        if as_json:
            counts = {"operations": verdict.operations, "steps": verdict.steps}
            print(json.dumps({"vcpu": vcpu, "verdict": verdict.answer, **counts, "why": verdict.why or told}))
            continue
        why = f": {verdict.why}" if verdict.why else ""
        print(f"{vcpu}: {verdict.answer}, {verdict.operations} operations, {verdict.steps} steps{why}")
        if told:
            print(told)
    raise typer.Exit({"ok": OK, "violation": VIOLATION, "unknown": UNKNOWN}[judged.answer])
