"""How the processes reach each other, and how they are cut off.

With namespaces each process has a network of its own, and a router between them forwards. A cut is a rule of the router
that drops what comes from one address to another: nobody hears of it, as with a cable. Where they are not allowed, each
process has a proxy on a unix socket that lets nothing through instead.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from fault_lab.live.proxy import Proxy, Trouble

PORT: Final = 7411
HOST: Final = "host"


class Network(Protocol):
    """What a run needs of one."""

    kind: str

    def prefix(self, node: str) -> tuple[str, ...]:
        """What goes before a command line that is to run at a node."""

    def listen(self) -> str:
        """Where the host listens; empty for its socket."""

    def reach(self, node: str) -> None:
        """The host listens now: make the way from this node to it."""

    def address(self, node: str) -> str:
        """Where the host is, as this node sees it."""

    def cut(self, node: str, *, to_host: bool, to_node: bool) -> None:
        """Drop what goes from the node to the host, or from the host to the node, or both."""

    def heal(self, node: str) -> None:
        """Let everything through again."""

    def close(self) -> None:
        """Take everything down."""


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Namespaces:
    """One namespace per node and one for the router. Raises ``OSError`` where that is not allowed."""

    kind = "network namespaces"

    def __init__(self, name: str, nodes: Sequence[str]) -> None:
        self._name = name
        self._numbers = {node: nr for nr, node in enumerate(nodes)}
        self._made: list[str] = []
        try:
            self._namespace("router")
            _ip("netns", "exec", self._ns("router"), "sysctl", "-qw", "net.ipv4.ip_forward=1")
            for node in nodes:
                self._add(node)
        except OSError:
            self.close()
            raise

    def _ns(self, node: str) -> str:
        return f"{self._name}-{node}"

    def _namespace(self, node: str) -> None:
        _ip("netns", "add", self._ns(node))
        self._made.append(self._ns(node))
        _ip("-n", self._ns(node), "link", "set", "lo", "up")

    def _add(self, node: str) -> None:
        """A cable from the node to the router, an address at both ends, and a way to everybody else."""
        self._namespace(node)
        nr, router, here = self._numbers[node], self._ns("router"), self._ns(node)
        _ip("-n", router, "link", "add", f"to{nr}", "type", "veth", "peer", "name", "eth0", "netns", here)
        for namespace, link, last in ((router, f"to{nr}", 1), (here, "eth0", 2)):
            _ip("-n", namespace, "address", "add", f"10.201.{nr}.{last}/24", "dev", link)
            _ip("-n", namespace, "link", "set", link, "up")
        _ip("-n", here, "route", "add", "default", "via", f"10.201.{nr}.1")

    def prefix(self, node: str) -> tuple[str, ...]:
        """Run it in the node's namespace."""
        return ("ip", "netns", "exec", self._ns(node))

    def ip_of(self, node: str) -> str:
        """The node's address."""
        return f"10.201.{self._numbers[node]}.2"

    def listen(self) -> str:
        """On the host's own address."""
        return f"{self.ip_of(HOST)}:{PORT}"

    def reach(self, node: str) -> None:
        """The way is there."""

    def address(self, node: str) -> str:
        """The same for everybody."""
        return self.listen()

    def cut(self, node: str, *, to_host: bool, to_node: bool) -> None:
        """A rule in the router for each way that is cut."""
        self.heal(node)
        ends = (self.ip_of(node), self.ip_of(HOST))
        for wanted, (source, target) in ((to_host, ends), (to_node, ends[::-1])):
            if wanted:
                _ip("-n", self._ns("router"), "rule", "add", "from", source, "to", target, "blackhole")

    def heal(self, node: str) -> None:
        """Take the rules away that there are."""
        ends = (self.ip_of(node), self.ip_of(HOST))
        listed = subprocess.run(
            ["ip", "-n", self._ns("router"), "rule"], capture_output=True, text=True, check=True
        ).stdout
        for source, target in (ends, ends[::-1]):
            for _ in range(listed.count(f"from {source} to {target} blackhole")):
                _ip("-n", self._ns("router"), "rule", "del", "from", source, "to", target, "blackhole")

    def close(self) -> None:
        """The cables go with their namespaces."""
        for namespace in reversed(self._made):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
        self._made.clear()


class Proxies:
    """A proxy for each node, on an event loop of a thread. The host listens on its socket in ``folder``."""

    kind = "proxies"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._proxies: dict[str, Proxy] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def prefix(self, node: str) -> tuple[str, ...]:
        """Where everybody else runs."""
        return ()

    def listen(self) -> str:
        """The host's socket."""
        return ""

    def reach(self, node: str) -> None:
        """Start its proxy."""

        async def start() -> Proxy:
            proxy = Proxy(f"unix:{self._folder}/{node}.sock", f"unix:{self._folder}/host.sock", link=(node, "host"))
            return await proxy.__aenter__()

        self._proxies[node] = asyncio.run_coroutine_threadsafe(start(), self._loop).result(60)

    def address(self, node: str) -> str:
        """Its proxy's."""
        return self._proxies[node].address

    def cut(self, node: str, *, to_host: bool, to_node: bool) -> None:
        """Let nothing through."""
        proxy = self._proxies[node]
        for way, cut in ((proxy.there, to_host), (proxy.back, to_node)):
            self._call(partial(way.set, Trouble(stalled=cut)))

    def heal(self, node: str) -> None:
        """Let everything through."""
        self.cut(node, to_host=False, to_node=False)

    def _call(self, function: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """End the loop, and the connections with it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


def made_network(nodes: Sequence[str], folder: Path, *, proxies: bool) -> tuple[Network, str]:
    """Namespaces where that is allowed and proxies are not wished for, else proxies and the reason."""
    if proxies:
        return Proxies(folder), "as asked"
    try:
        return Namespaces(f"fpstated-{os.getpid()}", nodes), ""
    except OSError as error:
        return Proxies(folder), str(error)
