"""A proxy on every link that a plan speaks of, on an event loop of a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.hit import matches
from fault_lab.live.points import LiveFaults
from fault_lab.live.proxy import Proxy, Trouble
from fault_lab.sim.network import latency_ns

T = TypeVar("T")


class Wires:
    """The proxies of a run: ``route`` is where a node connects to reach its host."""

    def __init__(self, plan: plan_pb2.Plan, directory: Path, faults: LiveFaults) -> None:
        self._topology = plan.topology
        points = [*(fault.point for fault in plan.faults), *(hit.point for hit in plan.schedule.hits)]
        #: Whom a fault of links is about is known when it is hit; without one, a link is named for its latency alone.
        self._all = any(point.startswith("link.") for point in points)
        self._directory = directory
        self._faults = faults
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)
        self._proxies: dict[str, Proxy] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for proxy in self._proxies.values():
            self._do(proxy.close())
        self._do(_settled())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def route(self, node: str, host: str, address: str) -> str:
        """Where ``node`` connects to reach ``host``, which listens at ``address``."""
        latencies = {f"{node}->{host}": self._latency(node, host), f"{host}->{node}": self._latency(host, node)}
        if not self._all and not any(latencies.values()):
            return address
        if node not in self._proxies:
            self._proxies[node] = self._do(self._opened(node, host, address, latencies))
        return self._proxies[node].address

    async def _opened(
        self, node: str, host: str, address: str, latencies: Mapping[str, tuple[int, int] | None]
    ) -> Proxy:
        listen = f"unix:{self._directory.absolute()}/{node.replace('/', '-')}.wire"
        if not address.startswith("unix:"):
            listen = "127.0.0.1:0"
        proxy = Proxy(listen, address, link=(node, host), faults=self._faults if self._all else None)
        await proxy.start()
        for way in (proxy.there, proxy.back):
            latency = latencies[way.name]
            if latency is not None:
                way.set(Trouble(delay_ns=latency[0], jitter_ns=latency[1] - latency[0]))
        return proxy

    def _latency(self, source: str, to: str) -> tuple[int, int] | None:
        """How long messages take, where the plan says so; what it leaves open is as long as it takes."""
        for link in self._topology.links:
            if matches(getattr(link, "from"), source) and matches(link.to, to):
                return latency_ns(link.latency)
        return latency_ns(self._topology.link_default) if self._topology.HasField("link_default") else None

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


async def _settled() -> None:
    """Let the loop close what was told to close."""
    for _ in range(3):
        await asyncio.sleep(0)
