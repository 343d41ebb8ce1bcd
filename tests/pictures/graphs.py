"""A small graph of states in the form that the exhaustive search writes."""

from __future__ import annotations

import json
from typing import Any

_RUNNING = {"name": "vms/a/vcpus/0", "xcr0": 7, "xfd": 0x40000, "size": 2560, "state": "ENTERED", "exit": None}
_PARKED = {**_RUNNING, "state": "PARKED", "exit": "vms/a/vcpus/0/exits/1"}
_GROWN = {**_RUNNING, "xfd": 0, "size": 10752}


def _node(number: int, depth: int, vcpu: dict[str, Any], *flight: str) -> dict[str, Any]:
    spent = {"faults": int(vcpu["state"] == "PARKED")}
    rest = {"fingerprint": f"{number:016x}", "vcpus": [vcpu], "flight": list(flight), "spent": spent}
    return {"id": number, "depth": depth, **rest}


def graph() -> dict[str, Any]:
    """Four states: a growth that succeeds, or fails and is decided; deciding twice is a violation."""
    alloc = "fpstate.realloc.alloc"
    return {
        "format": "fpstated state graph 1",
        "plan": "small",
        "states": 4,
        "exhausted": True,
        "bounds": {"faults": 1, "preemptions": None},
        "nodes": [
            _node(0, 0, _RUNNING, "host: a/0 sends 1 Wrmsr"),
            _node(1, 1, _GROWN, "a/0: hears done"),
            _node(2, 1, _PARKED, "a/0: hears pending", "ctl: hears of exit 1"),
            _node(3, 2, _PARKED, "a/0: hears pending", "host: ctl decides RETRY"),
        ],
        "edges": [
            {"from": 0, "to": 1, "action": "host: a/0 sends 1 Wrmsr", "fault": None},
            {"from": 0, "to": 2, "action": "host: a/0 sends 1 Wrmsr", "fault": alloc},
            {"from": 2, "to": 3, "action": "ctl: hears of exit 1", "fault": None},
            {"from": 3, "to": 1, "action": "host: ctl decides RETRY", "fault": None},
        ],
        "violations": [
            {
                "check": "one-decision-a-generation",
                "text": "RETRY for generation 1 is applied twice",
                "from": 3,
                "action": "host: ctl decides RETRY, again",
                "fault": "controller.decide",
                "path": [0, 2, 3],
            }
        ],
    }


def graph_text(**changes: Any) -> str:  # noqa: ANN401 -- JSON
    """The graph as JSON, with some fields replaced."""
    return json.dumps({**graph(), **changes})
