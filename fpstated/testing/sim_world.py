"""A simulated world to step through: built piece by piece or from a plan, looked at and disturbed between two steps.

The run is the simulator's own ``World.run``, on a thread that stands before each step until it is let go, so that what
is stepped through is exactly what a run of the plan with this seed is, as long as nothing is done to it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.points import FAULT_POINTS, Seat
from fault_lab.injection.table import ArmedFault
from fault_lab.plan.check import API_VERSION
from fault_lab.plan.load import load_plan
from fault_lab.sim.agenda import Entry
from fault_lab.sim.controller import ControllerNode
from fault_lab.sim.guest import GuestNode
from fault_lab.sim.host import HostNode
from fault_lab.sim.node import Node
from fault_lab.sim.rules import Violation
from fault_lab.sim.world import World
from fpstated.testing.arming import arming
from fpstated.testing.records import Records
from host_agent.exits import ExitRecord

_S = 1_000_000_000
_WAIT_S = 60.0


class _GivenUp(BaseException):
    """Nobody goes on with this run."""


class _Stepped(World):
    """A world that asks before each step."""

    def __init__(self, plan: plan_pb2.Plan, seed: int, before: Callable[[Entry], None]) -> None:
        super().__init__(plan, seed)
        self._before = before

    def step(self, entry: Entry) -> None:
        """Wait, then let it happen."""
        self._before(entry)
        super().step(entry)


class SimWorld:
    """One world. Pieces are added before the first step; what is done to it between steps is recorded."""

    def __init__(self, plan: plan_pb2.Plan | None = None, seed: int | None = None) -> None:
        self._given = plan
        self._seed = seed
        self._tree: dict[str, Any] = {"api-version": API_VERSION, "name": "world"}
        self._world: _Stepped | None = None
        self._thread: threading.Thread | None = None
        self._go = threading.Semaphore(0)
        self._stands = threading.Semaphore(0)
        self._free = self._left = False
        self._error: BaseException | None = None
        #: Whether the run has come to its end.
        self.over = False
        #: What happens next, in words; empty before the first step and behind the last.
        self.next = ""

    # -- building ------------------------------------------------------------------------------------------------------

    def host(self, name: str = "host", **fields: object) -> Self:
        """Add a host; fields as ``topology.hosts`` of a plan has them."""
        return self._add("topology", "hosts", {"name": name, **fields})

    def vm(self, name: str = "a", **fields: object) -> Self:
        """Add a VM: ``vcpus=2``, ``allocation_policy="on_write"``, ..."""
        return self._add("topology", "vms", {"name": name, **fields})

    def controller(self, *policies: str, name: str = "controller", **fields: object) -> Self:
        """Add a controller with policies as ``fpstated controller --policy`` takes them."""
        return self._add("topology", "controllers", {"name": name, "policies": [*policies], **fields})

    def guest(self, **fields: object) -> Self:
        """Say what vCPUs play: ``mix="after-nm"``, ``script=...``, ``vcpu="vms/a/*"``."""
        return self._add("workload", "guests", fields)

    def fault(self, name: str, point: str, **fields: object) -> Self:
        """Add a fault in a plan's short forms: ``action="ENOMEM"``, ``attributes={"fail-nth": 1}``."""
        return self._add("", "faults", {"name": name, "point": point, **fields})

    def _add(self, part: str, kind: str, piece: Mapping[str, object]) -> Self:
        if self._given is not None or self._world is not None:
            raise RuntimeError(f"{kind}: expected it before the first step, of a world without a plan")
        holder = self._tree.setdefault(part, {}) if part else self._tree
        holder.setdefault(kind, []).append(dict(piece))
        return self

    @property
    def plan(self) -> plan_pb2.Plan:
        """The plan of this world; ``PlanError`` where the pieces make none."""
        if self._given is None:
            self._given = load_plan(json.dumps(self._tree), "fpstate_world")
        return self._given

    @property
    def world(self) -> World:
        """The simulator's world: everything that there is."""
        if self._world is None:
            self._world = _Stepped(self.plan, self.seed, self._before)
        return self._world

    @property
    def seed(self) -> int:
        """The seed of this world."""
        return self.plan.seed if self._seed is None else self._seed

    # -- going on ------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Let one step happen; False where there is none. Raises ``Violation`` where a check does not hold."""
        if self._thread is None:
            self._start()
        if not self.over:
            self._go.release()
            self._wait()
        return not self.over

    def until(self, condition: Callable[[SimWorld], object]) -> Self:
        """Step until a condition holds; one that never does fails the test. Raises ``Violation``."""
        while not condition(self):
            if not self.step():
                raise AssertionError(f"the run is over after {self.world.steps} steps, and it has never been so")
        return self

    def run(self) -> Self:
        """Go on to the end. Raises ``Violation``."""
        self._free = True
        while self.step():
            pass
        return self

    def close(self) -> None:
        """Leave the run where it is."""
        self._left = True
        if self._thread is not None:
            self._go.release()
            self._thread.join(_WAIT_S)

    def _start(self) -> None:
        world = self.world
        self._thread = threading.Thread(target=self._run, args=(world,), name="fpstate-world", daemon=True)
        self._thread.start()
        self._wait()

    def _run(self, world: World) -> None:
        try:
            world.run()
        except _GivenUp:
            pass
        except BaseException as error:  # noqa: BLE001 -- it is raised where somebody waits
            self._error = error
        self.over, self.next = True, ""
        self._stands.release()

    def _before(self, entry: Entry) -> None:
        if self._free:
            return
        self.next = f"{entry.node or 'world'}: {entry.what}"
        self._stands.release()
        self._go.acquire()
        if self._left:
            raise _GivenUp

    def _wait(self) -> None:
        self._stands.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, Violation):
                self.world.record("violation", check=error.check, text=error.text, step=self.world.steps)
            raise error

    # -- looking -------------------------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """Virtual seconds since the beginning."""
        return self.world.now_ns / _S

    @property
    def history(self) -> Records:
        """The records so far."""
        return Records(self.world.history.lines)

    @property
    def hosts(self) -> Mapping[str, HostNode]:
        """The hosts by name; ``.machine.state`` is what a host knows."""
        return self.world.hosts

    @property
    def guests(self) -> Mapping[str, GuestNode]:
        """The guest agents by their VM: ``vms/a``."""
        return self.world.guests

    @property
    def controllers(self) -> Mapping[str, ControllerNode]:
        """The controllers by name."""
        return self.world.controllers

    @property
    def exits(self) -> Mapping[str, ExitRecord]:
        """The exits that are open or paused, of all hosts, by name."""
        return {name: each for host in self.hosts.values() for name, each in host.machine.state.exits.items()}

    @property
    def fired(self) -> list[str]:
        """The faults that have fired, one name a hit."""
        return [each["fault"] for each in self.history.of("fault")]

    # -- disturbing ----------------------------------------------------------------------------------------------------

    def kill(self, node: str, restart_s: float | None = None) -> None:
        """End a process now, as by SIGKILL; it starts again after ``restart_s``, None for when the world heals."""
        self._node(node).end("killed", None if restart_s is None else round(restart_s * _S))

    def pause(self, node: str, seconds: float) -> None:
        """Let a process stand still."""
        self._node(node).paused_until_ns = self.world.now_ns + round(seconds * _S)
        self.world.record("node", node=node, state="paused", until=self.world.now_ns + round(seconds * _S))

    def put_clock(self, node: str, seconds: float) -> None:
        """Put a process's clock forward, or back."""
        found = self._node(node)
        found.clock.set(found.now_ns + round(seconds * _S))
        self.world.record("node", node=node, state="clock", by=round(seconds * _S))
        if isinstance(found, HostNode):
            found.clock_changed()

    def arm(self, point: str, action: str = "", *, host: str = "", **fields: Any) -> ArmedFault:  # noqa: ANN401
        """Arm a fault at a host's own point from now on: fields as ``fpstate_faults.arm`` has them."""
        if point in FAULT_POINTS and FAULT_POINTS[point].seat is not Seat.HOST:
            raise ValueError(f"point: expected one of a host's own, which others go into the plan, got {point!r}")
        found = self.hosts[host] if host else next(iter(self.hosts.values()))
        armed: ArmedFault = found.apply(arming(point, action, **fields))
        return armed

    def _node(self, name: str) -> Node:
        if name not in self.world.nodes:
            raise KeyError(f"expected one of {', '.join(self.world.nodes)}, got {name!r}")
        return self.world.nodes[name]
