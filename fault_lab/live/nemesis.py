"""What a plan does to the processes of a live run: SIGKILL and a start later, SIGSTOP and SIGCONT.

A hit of ``node.run`` is a message of a call that the runner has heard of, on its way to a node that is up: a request to
a host, an answer to its caller. What ends by itself is started again, as a service manager does. Everything is done in
``work``, by the one thread that has started the processes.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from typing import Final

from fault_lab.injection.action import Clock, Kill, Pause
from fault_lab.live.cluster import LiveCluster
from fault_lab.live.history import LiveHistory, Record
from fault_lab.live.points import LiveFaults

_S: Final = 1_000_000_000
#: A service manager starts what has ended again after this, as in the simulator.
_RESTART_NS: Final = _S
#: How often a host that was started is asked whether it answers.
_LOOK_NS: Final = _S // 20


class Nemesis:
    """The processes of one run.

    ``on_host_back`` hears of each host that answers again, ``on_clock`` of one whose clock is to be wrong.
    """

    def __init__(
        self,
        cluster: LiveCluster,
        faults: LiveFaults,
        history: LiveHistory,
        on_host_back: Callable[[str], None],
        on_clock: Callable[[str, Clock], None],
    ) -> None:
        self._cluster = cluster
        self._faults = faults
        self._history = history
        self._on_host_back = on_host_back
        self._on_clock = on_clock
        points = {each.point for each in cluster.plan.faults} | {each.point for each in cluster.plan.schedule.hits}
        self._asks = bool(points & {"node.run", "node.clock"})
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        #: Nodes that are down until everything is healed.
        self._down: set[str] = set()
        self._closing = False
        #: The vCPUs that somebody has tried to make.
        self._vcpus: set[str] = set()

    def start_all(self) -> None:
        """Everything but the hosts, which run."""
        for name in self._cluster.hosts:
            self._history.add("node", node=name, state="started")
        for name in (*self._cluster.controllers, *self._cluster.guests):
            self._start(name)

    # -- hits ----------------------------------------------------------------------------------------------------------

    def heard(self, record: Record) -> None:
        """A call was made, or answered: that is an event of the node that the message goes to."""
        if record.get("f") == "CreateVcpu" and record["type"] == "invoke":
            self._vcpus.add(record["value"])
        if not self._asks or "process" not in record or record["process"].startswith("runner/"):
            return
        client = "/".join(record["process"].split("/")[:2])
        if client not in self._cluster.host_of:
            return
        request = record["type"] == "invoke"
        node = self._cluster.host_of[client] if request else client
        process = self._cluster[node]
        if not process.running or process.paused:
            return
        what = f"{record['f']} {'request' if request else 'reply'}"
        skews = self._faults.hit("node.clock", node, what)
        if skews is not None and isinstance(skews.action, Clock):
            self._on_clock(node, skews.action)
        firing = self._faults.hit("node.run", node, what)
        match firing.action if firing is not None else None:
            case Kill(restart_ns=restart_ns):
                self.kill(node, restart_ns)
            case Pause(for_ns=ns):
                self._history.add(
                    "node", node=node, state="paused", until=time.monotonic_ns() - self._history.start_ns + ns
                )
                process.pause()
                self._after(ns, lambda: self._resume(node))
            case _:
                pass

    def kill(self, node: str, restart_ns: int | None) -> None:
        """SIGKILL; the node starts again after ``restart_ns``, None for not before everything is healed."""
        self._down.add(node)
        self._cluster[node].kill()
        self._history.add("node", node=node, state="killed")
        self._forgets(node)
        if restart_ns is not None:
            self._after(restart_ns, lambda: self._start(node))

    def ended(self, node: str) -> None:
        """A process has ended by itself."""
        if node in self._down or self._closing or self._cluster[node].running:
            return
        self._down.add(node)
        self._history.add("node", node=node, state=f"ended with status {self._cluster[node].status}")
        self._forgets(node)
        self._after(_RESTART_NS, lambda: self._start(node))

    def _forgets(self, node: str) -> None:
        """A host without a journal has ended."""
        if node in self._cluster.hosts and self._cluster.hosts[node].ephemeral:
            host_of = self._cluster.host_of
            gone = sorted(vcpu for vcpu in self._vcpus if host_of[vcpu.partition("/vcpus/")[0]] == node)
            self._vcpus.difference_update(gone)
            self._history.add("node", node=node, state="forgot", op={"vcpus": gone})

    def heal(self) -> None:
        """Whatever stands still goes on, whatever is down starts."""
        for node in self._cluster.nodes:
            self._resume(node)
            self._start(node)

    def close(self) -> None:
        """What ends from now on is not started again."""
        self._closing = True

    # -- time ----------------------------------------------------------------------------------------------------------

    def work(self) -> float:
        """Do what is due; returns in how many seconds the next thing is."""
        while self._agenda and self._agenda[0][0] <= time.monotonic_ns():
            heapq.heappop(self._agenda)[2]()
        return (self._agenda[0][0] - time.monotonic_ns()) / _S if self._agenda else _S

    def _after(self, ns: int, run: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (time.monotonic_ns() + ns, next(self._order), run))

    def _resume(self, node: str) -> None:
        process = self._cluster[node]
        if process.paused:
            process.resume()
            self._history.add("node", node=node, state="goes on")

    def _start(self, node: str) -> None:
        process = self._cluster[node]
        if process.running or self._closing:
            return
        self._cluster.launch(node)
        self._down.discard(node)
        self._history.add("node", node=node, state="started")
        if node in self._cluster.hosts:
            self._look(node, process.life)

    def _look(self, host: str, life: int) -> None:
        """Ask until it answers, or is another process."""
        process = self._cluster[host]
        if process.life != life or not process.running:
            return
        if not process.paused and self._cluster.is_ready(host):
            self._history.add("node", node=host, state="recovered")
            self._on_host_back(host)
        else:
            self._after(_LOOK_NS, lambda: self._look(host, life))
