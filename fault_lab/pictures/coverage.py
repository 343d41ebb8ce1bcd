"""What many runs have reached: at which fault point, in which state of the vCPU, followed by which decision.

A hit that fires concerns one vCPU, or several, and counts once for each:

    entity a vCPU                       that one
    entity a VM, or a guest's node      its vCPUs
    a message, a method, a decision     the vCPU whose call it is, or whose exit is decided; else as its caller
    anything else                       every vCPU

The decision that followed is the next one made about an exit of that vCPU: by a controller, or by the deadline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fault_lab.pictures.recording import Record
from fault_lab.pictures.vcpu_states import VcpuStates, planned_vcpus

#: What followed where no decision did: the exit was cancelled, or nobody decided any more.
CANCELLED: Final = "cancelled"
NOTHING: Final = "none"

#: Point, state, decision.
Cell = tuple[str, str, str]


@dataclass(slots=True)
class Coverage:
    """The cells of many runs of one plan (as JSON)."""

    plan: Mapping[str, Any]
    cells: Counter[Cell] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    runs: int = 0

    def add(self, records: Sequence[Record]) -> None:
        """Count one run."""
        self.runs += 1
        hosts = planned_vcpus(self.plan)
        states = VcpuStates(hosts)
        waiting: dict[str, list[tuple[str, str]]] = {}
        for record in records:
            if record.type == "fault":
                self.hits[record.text("point")] += 1
                for vcpu in _concerned(record, records, hosts):
                    waiting.setdefault(vcpu, []).append((record.text("point"), states.of(vcpu)))
            states.see(record)
            vcpu, decision = _decided(record)
            for point, state in waiting.pop(vcpu, ()) if decision else ():
                self.cells[point, state, decision] += 1
        for left in waiting.values():
            self.cells.update((point, state, NOTHING) for point, state in left)


def _decided(record: Record) -> tuple[str, str]:
    """The vCPU that a record decides about, and what; empty where it decides nothing."""
    vcpu = record.text("exit").rpartition("/exits/")[0]
    if record.type == "decision":
        return vcpu, record.text("kind")
    if record.type == "exit" and record.text("state") == "cancelled":
        return vcpu, CANCELLED
    if record.type == "exit" and record.text("decision") and not record.text("by"):
        return vcpu, record.text("decision")
    return vcpu, ""


def _concerned(fault: Record, records: Sequence[Record], hosts: Mapping[str, str]) -> list[str]:
    entity = fault.text("entity")
    if entity in hosts:
        return [entity]
    if entity.startswith("vms/") and "->" not in entity:
        return _vcpus_of(entity, hosts)
    if fault.text("point").startswith("node."):
        return [vcpu for vcpu, host in hosts.items() if entity == host] or list(hosts)
    place = _asked_for(fault, records)
    return [place] if place in hosts else _vcpus_of(place, hosts) or list(hosts)


def _vcpus_of(vm: str, hosts: Mapping[str, str]) -> list[str]:
    return [vcpu for vcpu in hosts if vcpu.startswith(f"{vm}/vcpus/")]


def _asked_for(fault: Record, records: Sequence[Record]) -> str:
    """For whom a message, a method or a decision was under way: a vCPU, a VM, or empty."""
    cause = fault.cause
    while cause >= 0:
        record = records[cause]
        if record.type in {"exit", "decision"}:
            return record.text("exit").rpartition("/exits/")[0]
        if record.type == "invoke" and records[record.cause].type != "decision":
            return record.text("process")
        cause = record.cause
    return ""
