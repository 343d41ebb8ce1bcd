"""The state graph as JSON: what a page that draws states reads.

    {
      "format": "fpstated state graph 1",
      "plan": "two-vcpus", "plan_sha256": "...", "bounds": {"depth": 200, ...},
      "states": 557, "transitions": 799, "depth": 22, "exhausted": true, "shown": 557,
      "nodes": [
        {"id": 0, "fingerprint": "16 hexadecimal digits", "depth": 0,
         "vcpus": [{"name": "vms/a/vcpus/0", "xcr0": 7, "xfd": 0, "size": 2560, "state": "OUTSIDE", "parked": false,
                    "exit": null, "exit_state": null, "generation": null, "agent": "asks", "event": 1}, ...],
         "agents": [{"name": "vms/a", "session": 1, "open": true}, ...],
         "controllers": [{"name": "ctl", "control": 1, "held": true, "news": 0}, ...],
         "flight": ["host: vms/a/vcpus/0 sends 1 Xsetbv", ...],
         "spent": {"faults": 0, "drops": 0, "duplicates": 0, "crashes": 0, "preemptions": 0}}, ...],
      "edges": [{"from": 0, "to": 1, "action": "host: ctl acquires control 1", "fault": null}, ...],
      "violations": [{"check": "epochs-fence", "text": "...", "from": 12, "action": "...", "fault": null,
                      "path": [0, 3, 12]}, ...]
    }

Masks and sizes are numbers; a size is in bytes. Nodes are in the order in which they were met, so a cap keeps
those that are nearest to the beginning, with the edges between them and every path of a violation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from host_agent.exits import ExitState
from host_agent.kvm.lifecycle import VcpuState
from host_agent.state import VcpuSide

if TYPE_CHECKING:
    from fault_lab.explore.run import Explored
    from fault_lab.explore.search import Found
    from fault_lab.explore.state import State
    from fault_lab.explore.world import SmallWorld

FORMAT: Final = "fpstated state graph 1"
#: Nodes of a graph, beyond those that are on the path of a violation.
SHOWN_MAX: Final = 10_000


def graph(explored: Explored, *, shown_max: int = SHOWN_MAX) -> dict[str, Any]:
    """Return the graph of an exploration, capped."""
    space, world = explored.space, explored.world
    paths = {found.check: _path(explored, found) for found in explored.violations}
    shown = set(range(min(shown_max, len(space.states)))) | {nr for path in paths.values() for nr in path}
    return {
        "format": FORMAT,
        "plan": explored.plan.name,
        "plan_sha256": explored.plan_hash,
        "bounds": asdict(explored.bounds),
        "states": explored.states,
        "transitions": explored.transitions,
        "depth": explored.depth,
        "exhausted": explored.exhausted,
        "shown": len(shown),
        "nodes": [_node(world, nr, space.depths[nr], space.states[nr]) for nr in sorted(shown)],
        "edges": [
            {"from": edge.source, "to": edge.to, "action": edge.text, "fault": edge.fault or None}
            for edge in space.edges
            if edge.source in shown and edge.to in shown
        ],
        "violations": [
            {
                "check": found.check,
                "text": found.text,
                "from": found.source,
                "action": found.move.text if found.move is not None else None,
                "fault": found.move.fires.point if found.move is not None and found.move.fires is not None else None,
                "path": paths[found.check],
            }
            for found in explored.violations
        ],
    }


def _path(explored: Explored, found: Found) -> list[int]:
    numbers, at = [], found.source
    while True:
        numbers.append(at)
        parent = explored.space.parents[at]
        if parent is None:
            return numbers[::-1]
        at = parent[0]


def _node(world: SmallWorld, number: int, depth: int, state: State) -> dict[str, Any]:
    cast = world.hosts.cast
    return {
        "id": number,
        "fingerprint": fingerprint(world, state),
        "depth": depth,
        "vcpus": list(_vcpus(world, state)),
        "agents": [
            {"name": cast.vm_name(vm), "session": at.life, "open": at.open} for vm, at in enumerate(state.agents)
        ],
        "controllers": [
            {"name": planned.name, "control": at.life, "held": at.held, "news": len(at.news)}
            for planned, at in zip(cast.controllers, state.controllers, strict=True)
        ],
        "flight": [world.people.text(message) for message in state.flight],
        "spent": state.spent._asdict(),
    }


def _vcpus(world: SmallWorld, state: State) -> Iterator[dict[str, Any]]:
    machine = world.hosts.turn(state.host).machine
    for played, at in zip(world.hosts.cast.vcpus, state.vcpus, strict=True):
        vcpu = machine.state.vcpu(played.name)
        container = vcpu.guest.fpstate
        assert container is not None, "no vCPU of an explored world is deleted"
        record = vcpu.agent.exit if isinstance(vcpu.agent, VcpuSide) else None
        waits = record is not None and record.state in (ExitState.OPEN, ExitState.APPLYING, ExitState.PAUSED)
        yield {
            "name": played.name,
            "xcr0": vcpu.xcr0,
            "xfd": container.xfd,
            "size": container.size,
            "state": vcpu.state.name,
            "parked": vcpu.state in (VcpuState.PARKED, VcpuState.PAUSED),
            "exit": record.name if record is not None and waits else None,
            "exit_state": record.state.name if record is not None and waits else None,
            "generation": record.generation if record is not None and waits else None,
            "agent": at.phase,
            "event": at.seq,
        }


def fingerprint(world: SmallWorld, state: State) -> str:
    """A text for a state: the same for the same plan and bounds."""
    host = world.hosts.content(state.host)
    rest = (world.hosts.content(state.durable), state[2:])
    return hashlib.sha256(repr((host, rest)).encode()).hexdigest()[:16]


def graph_json(explored: Explored, *, shown_max: int = SHOWN_MAX) -> str:
    """The graph as a text: one node, edge or violation a line."""
    found = graph(explored, shown_max=shown_max)
    lines = ["{"]
    for name, value in found.items():
        comma = "," if name != "violations" else ""
        if isinstance(value, list) and value:
            rows = ",\n".join(f"    {json.dumps(row, separators=(',', ':'))}" for row in value)
            lines.append(f'  "{name}": [\n{rows}\n  ]{comma}')
        else:
            lines.append(f'  "{name}": {json.dumps(value)}{comma}')
    return "\n".join([*lines, "}"]) + "\n"
