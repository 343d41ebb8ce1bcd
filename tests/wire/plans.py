"""Plans of a guest's VM ``a`` and a ``host``, with faults at some point."""

from __future__ import annotations

from fpstate.fault.v1 import plan_pb2

from fault_lab.live.points import LiveFaults
from fault_lab.plan.load import load_plan


def plan(*faults: str, extra: str = "") -> plan_pb2.Plan:
    """Each fault as the text of a mapping without its name: ``point: link.message, action: {drop: {}}``."""
    listed = "".join(f"  - {{name: f{nr}, {fault}}}\n" for nr, fault in enumerate(faults, 1))
    return load_plan(
        "api-version: fpstate.fault.v1\nname: wire\nseed: 7\n"
        "topology: {hosts: [{name: host}], vms: [{name: a}]}\n"
        "workload: {guests: [{mix: after-nm}]}\n" + (f"faults:\n{listed}" if faults else "") + extra
    )


def armed(*faults: str, extra: str = "", phase: str = "chaos") -> LiveFaults:
    """The same, in the middle of a run."""
    live = LiveFaults(plan(*faults, extra=extra))
    live.enter(phase)
    return live
