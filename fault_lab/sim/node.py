"""A node: a process with a clock, which runs, stands still or is down, and whose tasks end with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fault_lab.injection.draw import PPM
from fault_lab.sim.agenda import Entry
from fault_lab.sim.rpc import call
from fault_lab.sim.task import Call, Sleep, Task, Wait

if TYPE_CHECKING:
    from fault_lab.sim.world import World


class Clock:
    """A node's clock: the world's time, put forward or back, and running fast or slow from some moment on."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._from_ns = world.now_ns
        self._shown_ns = 0
        self._drift_ppm = 0

    def now_ns(self) -> int:
        """What it shows."""
        return self._shown_ns + (self._world.now_ns - self._from_ns) * (PPM + self._drift_ppm) // PPM

    def set(self, shown_ns: int, drift_ppm: int | None = None) -> None:
        """Let it show this now."""
        self._from_ns, self._shown_ns = self._world.now_ns, shown_ns
        if drift_ppm is not None:
            self._drift_ppm = drift_ppm

    def span_ns(self, ns: int) -> int:
        """How long the world waits until the clock has gone on by ``ns``, rounded up."""
        return max(0, -(-ns * PPM // (PPM + self._drift_ppm)))


class Node:
    """What every node has. ``boot`` is a subclass's: what the process does first, each time it is started."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.clock = Clock(world)
        self.up = False
        self.paused_until_ns = 0
        #: Raised with each end, so that what was meant for an earlier process does not reach a later one.
        self.life = 0
        self._running: list[Task] = []

    @property
    def now_ns(self) -> int:
        """The time by the node's own clock."""
        return self.clock.now_ns()

    # -- life ----------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Begin."""

    def start(self) -> None:
        """The process starts; nothing to do where it runs."""
        if not self.up:
            self.up = True
            self.world.record("node", node=self.name, state="started")
            self.boot()

    def end(self, why: str, restart_ns: int | None) -> None:
        """The process ends as by SIGKILL; after ``restart_ns`` it starts again, None for not before the world heals."""
        if not self.up:
            return
        self.up = False
        self.life += 1
        self.paused_until_ns = 0
        self.world.record("node", node=self.name, state=why)
        tasks, self._running = self._running, []
        for task in tasks:
            task.close()
        self.ended()
        self.world.network.reset(self.name)
        if restart_ns is not None:
            self.world.after(restart_ns, "", f"{self.name} starts", self.start)

    def ended(self) -> None:
        """Give up what dies with the process."""

    # -- time ----------------------------------------------------------------------------------------------------------

    def after(self, ns: int, what: str, run: Callable[[], None]) -> Entry:
        """Put something on the agenda of this process, ``ns`` of its own nanoseconds from now."""
        lane = f"{self.name} {what}" if ns else ""  # what follows at once is never late
        return self.world.after(self.clock.span_ns(ns), self.name, what, self.of_this_life(run), lane)

    def of_this_life(self, run: Callable[[], None]) -> Callable[[], None]:
        """Do it unless the process has ended meanwhile."""
        life = self.life
        return lambda: run() if self.life == life else None

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def spawn(self, task: Task) -> Task:
        """Let a task run until it first waits."""
        self._running.append(task)
        self._resume(task, None)
        return task

    def stop(self, task: Task) -> None:
        """End a task where it waits; nothing to do where it has ended."""
        if task in self._running:
            self._running.remove(task)
            task.close()

    def _resume(self, task: Task, value: Any) -> None:  # noqa: ANN401 -- what a task is sent is its own business
        if task not in self._running:
            return
        try:
            step = task.send(value)
        except StopIteration:
            self._running.remove(task)
            return
        match step:
            case Sleep(ns=ns):
                self.after(ns, "wakes", lambda: self._resume(task, None))
            case Wait(signal=signal):
                signal.waiting.append(lambda: self._resume(task, None))
            case Call():
                call(self, step, lambda reply: self._resume(task, reply))
