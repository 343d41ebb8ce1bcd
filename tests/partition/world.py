"""The processes of a run: a host, two guests that count, one that exits, two controllers of which one waits."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from fpstated.certs import issue
from guest_agent.host import Host
from tests.live.host import LiveHost
from tests.partition.network import HOST, Namespaces, Network, made_network
from tests.partition.process import LineProcess
from tests.service.certificates import Certificates

LEASE_S: Final = 3.0
METRICS_PORT: Final = 7412
OBSERVER: Final = "observer"
COUNTING: Final = ("g0", "g1")
EXITING: Final = "e"
CONTROLLERS: Final = ("c0", "c1")
NODES: Final = (HOST, OBSERVER, *COUNTING, EXITING, *CONTROLLERS)
_CLONE_NEWNET: Final = 0x4000_0000


class World:
    """All of them, and how they are started anew."""

    def __init__(self, folder: Path, *, proxies: bool = False) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self.network: Network
        self.network, self.no_namespaces = made_network(NODES, folder, proxies=proxies)
        self._stack.callback(self.network.close)
        self.certificates = Certificates(folder / "certs") if isinstance(self.network, Namespaces) else None
        self.processes: dict[str, LineProcess] = {}
        self._observe()
        self.host = self._host()
        for node in NODES[1:]:
            self.network.reach(node)

    def _observe(self) -> None:
        """This process's own connections come from the observer's namespace; before gRPC makes its first thread."""
        if isinstance(self.network, Namespaces):
            back = os.open("/proc/self/ns/net", os.O_RDONLY)
            self._stack.callback(os.close, back)
            self._stack.callback(_setns, back)
            there = os.open(f"/run/netns/{self.network.prefix(OBSERVER)[-1]}", os.O_RDONLY)
            _setns(there)
            os.close(there)

    def _host(self) -> LiveHost:
        if isinstance(self.network, Namespaces) and self.certificates is not None:
            address = self.network.ip_of(HOST)
            issue(self.certificates.folder, "host/test", file_name="host", hosts=[address], force=True)
            for node in (*COUNTING, EXITING):
                issue(self.certificates.folder, f"guest/{node}", file_name=f"guest-{node}")
            for node in CONTROLLERS:
                issue(self.certificates.folder, f"controller/{node}", file_name=f"controller-{node}")
        host = LiveHost(
            self._folder,
            "--exit-deadline",
            "3600",
            *self._metrics(),
            certificates=self.certificates,
            listen=self.network.listen(),
            prefix=self.network.prefix(HOST),
        )
        return self._stack.enter_context(host)

    def _metrics(self) -> tuple[str, ...]:
        """Where the observer can reach them."""
        if isinstance(self.network, Namespaces):
            return ("--metrics", f"{self.network.ip_of(HOST)}:{METRICS_PORT}", "--metrics-anywhere")
        return ()

    def start(self, node: str) -> LineProcess:
        """Start the process of a node, or start it anew."""
        made = LineProcess(node, [*self.network.prefix(node), sys.executable, "-m", *self._command(node)])
        if node not in self.processes:
            self._stack.callback(self._end, node)
        self.processes[node] = made
        return made

    def _end(self, node: str) -> None:
        process = self.processes[node]
        if process.alive:
            process.resume()
            process.stop()

    def _command(self, node: str) -> list[str]:
        address = self.network.address(node)
        folder = self.certificates.folder if self.certificates is not None else None
        if node not in CONTROLLERS:
            kind = "exit" if node == EXITING else "count"
            command = ["tests.partition.guest", address, node, kind, "--lease", str(LEASE_S)]
            return [*command, "--certs", str(folder)] if folder else command
        command = ["fpstated", "controller", "--host", address, "--name", node, "--lease", str(LEASE_S)]
        command += ["--policy", "inject-gp", "--timeline"]
        for flag, file in (("cert", f"controller-{node}.pem"), ("key", f"controller-{node}.key"), ("ca", "ca.pem")):
            command += [f"--tls-{flag}", f"{folder}/{file}"] if folder else []
        return command

    def guests(self) -> Iterator[LineProcess]:
        """Those that run as guests."""
        yield from (self.processes[node] for node in (*COUNTING, EXITING))

    @contextmanager
    def operator(self) -> Iterator[Host]:
        """The observer's client."""
        tls = self.certificates.client("operator/observer") if self.certificates is not None else None
        with Host(self.network.address(OBSERVER), tls=tls) as client:
            yield client

    def pause_host(self, signal_number: signal.Signals) -> None:
        """SIGSTOP or SIGCONT to the host."""
        os.kill(self.host.pid, signal_number)

    def verified(self) -> str:
        """What ``fpstated journal verify`` says once the host has stopped; raises ``RuntimeError`` for a bad one."""
        done = subprocess.run(
            [sys.executable, "-m", "fpstated", "journal", "verify", str(self.host.state_dir)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    def close(self) -> None:
        """End everything, newest first."""
        self._stack.close()


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
